"""What HTTP and the queue cost: python src/measure.py service --out reports/service.json

The same cases are answered by the model in this process and by the service it starts, clients in processes of their
own, at every --concurrency in turn, and the order of the two changes from one level to the next. With --upstream the
service stands before that server, which is asked directly for comparison. --overload sends that many times what the
service managed, for --seconds.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import NamedTuple

import locks
from common import ROOT, UserError, WorkFailed, parse_json, quiet_libraries, to_json
from constrained_decode import FAILED, Answer, load_engine, openai_api
from language_model import model_server
from language_model.model_folder import model_config
from load_test import clients
from manifest import Clock, write_manifest
from measurements import shipped_model, task_part
from rows import cases_from_file
from service.settings import model_settings
from tasks import DEFAULT, load_task

CONCURRENCY = (1, 8, 32, 64)
WARM_UP = 2  # requests a client


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    found = {"levels": [], "overload": None}
    quiet_libraries()
    try:
        with locks.only_writer(args.out), contenders(args, task) as (service, direct, process):
            for at, n_clients in enumerate(args.concurrency):
                found["levels"].append(
                    level(service, direct, n_clients, args, direct_first=at % 2, task=task)
                    | {"memory_mib": memory_mib(process.pid)}
                )
            if args.overload:
                found["overload"] = overloaded(args, service, process, found["levels"], task)
    except BaseException:
        # What was measured stays, and is not taken for the whole.
        write(args, task, args.out.with_suffix(".partial.json"), clock, found)
        raise
    write(args, task, args.out, clock, found)
    if found["overload"] and set(found["overload"]["statuses"]) - {"200", "429"}:
        raise WorkFailed(f"under overload other answers came than 200 and 429: {found['overload']['statuses']}")


def write(args, task, path, clock, found):
    write_manifest(
        path,
        clock,
        task=task.name,
        **found,
        requests=args.requests,
        workers=args.workers,
        upstream=bool(args.upstream),
        model=args.model_path or task.shipped,
    )
    print(f"in {path}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--pairs", help="cases to ask about, of whatever task (default: synthetic ones)")
    parser.add_argument(
        "--upstream",
        help="OpenAI-compatible server that the service stands before and is compared with, as "
        "http://localhost:8000/v1",
    )
    parser.add_argument(
        "--model_path",
        default="",
        help="the model's name there (default: the first that it lists); without --upstream the folder of the model "
        "that answers (default: the one that ships)",
    )
    parser.add_argument("--workers", type=int, default=1, help="the service's processes (default 1)")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=CONCURRENCY, help="clients at a time (default 1 8 32 64)"
    )
    parser.add_argument("--requests", type=int, default=10_000, help="requests over all levels (default 10,000)")
    parser.add_argument("--overload", type=float, default=0, help="times the measured rate to send then (default: not)")
    parser.add_argument("--seconds", type=float, default=60, help="of overload (default 60)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    if args.requests < len(args.concurrency) or min(args.concurrency) < 1:
        raise UserError("--requests and --concurrency are numbers above 0")
    return args


def cases_for(args, task):
    if args.pairs:
        return [case for _, case in cases_from_file(args.pairs, task)]
    return [row["input"] for row in task_part(task, "synthetic", "rows")(2_000, 1)]


class Asked(NamedTuple):
    """Who is asked: what sends the load, and the questions in its form."""

    load: object
    questions: list
    address: str | None = None


@contextlib.contextmanager
def contenders(args, task):
    """(the service, what stands behind it, the service's process)"""
    cases = cases_for(args, task)
    most = max(args.concurrency)
    with contextlib.ExitStack() as stack:
        if args.upstream:
            direct = clients.Processes(Upstream, (args.upstream, args.model_path, task, most), most)
            stack.callback(direct.close)
        else:
            engine = loaded(args.model_path or shipped_model(task), task)
            direct = clients.Here(clients.MicroBatches(engine))
            cases = [case for case in cases if fits(engine, task.messages(case))]
        address, process = stack.enter_context(served(args))
        through = clients.Processes(Caller, (address, task), most)
        stack.callback(through.close)
        yield Asked(through, cases, address), Asked(direct, [task.messages(case) for case in cases]), process


@contextlib.contextmanager
def served(args):
    """(the service's address, its process)"""
    port = model_server.free_port()
    log = args.out.with_suffix(".log")
    command = [sys.executable, str(ROOT / "src/serve.py"), "--port", str(port), "--workers", str(args.workers)]
    command += ["--task", args.task]
    command += ["--upstream", args.upstream] if args.upstream else []
    command += ["--model_path", args.model_path] if args.upstream or args.model_path else []
    with model_server.running(command, f"http://127.0.0.1:{port}/readyz", log) as process:
        yield f"http://127.0.0.1:{port}", process


class Caller:
    """A client of the service: asks about a case, gives an Answer."""

    def __init__(self, address, task):
        import httpx2

        self.route = task.hook("service", "ROUTE", "/answer")
        self.answer_key = task.hook("service", "ANSWER_KEY", "answer")
        self.may_refuse = task.hook("inference", "outcome") is not None
        self.client = httpx2.Client(
            base_url=address, timeout=60, trust_env=False, limits=httpx2.Limits(max_connections=clients.MOST_WAITING)
        )

    def ask(self, case):
        start = time.perf_counter()
        response = self.client.post(self.route, json=case)
        seconds = time.perf_counter() - start
        if response.status_code == 422 and self.may_refuse:
            return Answer(refusal_text(response.text), "stop", 0, 0, None, seconds)
        if response.status_code != 200:
            return Answer("", f"{FAILED}status {response.status_code}", 0, 0, None, seconds)
        return Answer(self.answer_text(response.text), "stop", 0, 0, None, seconds)

    def answer_text(self, body):
        """The answer as a model would have written it."""
        if self.answer_key is None:
            return body
        answer = parse_json(body)[self.answer_key]
        return answer if isinstance(answer, str) else to_json(answer)


def refusal_text(body):
    """The task's own refusal as a model would have written it; nothing where the model's answer failed its checks."""
    refusal = parse_json(body).get("answer")
    return "" if refusal is None else to_json(refusal)


class Upstream:
    """A client of the server behind the service, which asks as the service does."""

    def __init__(self, endpoint, model, task, n_clients):
        config = model_settings(SimpleNamespace(upstream=endpoint, config=None, model_path=model), task)
        self.engine = openai_api.connect(model, task, config, endpoint, n_clients)

    def ask(self, messages):
        return self.engine.ask(messages, with_shares=False)


def loaded(folder, task):
    return load_engine("hf").load(folder, task, model_config(argparse.Namespace(config=None, model_path=folder), task))


def fits(engine, messages):
    """Whether the model can read so much; the service would refuse it."""
    try:
        engine.check_prompt(messages)
    except UserError:
        return False
    return True


def level(service, direct, n_clients, args, direct_first, task):
    """Both at one load, and the one's rate over the other's."""
    found = {}
    for name, asked in [("direct", direct), ("service", service)][:: 1 if direct_first else -1]:
        found[name] = measured(asked, n_clients, max(n_clients * 4, args.requests // len(args.concurrency)), task)
    share = round(found["service"]["req_per_s"] / found["direct"]["req_per_s"], 3)
    words = [
        f"{name} {one['req_per_s']:.1f} requests/s, p50 {one['p50_ms']:.0f} ms, p95 {one['p95_ms']:.0f}, "
        f"{one['n_valid']:,} of {one['n']:,} valid"
        for name, one in sorted(found.items(), reverse=True)
    ]
    print(f"{n_clients} at a time: {'; '.join(words)}; {share:.2f} of it", flush=True)
    return {"concurrency": n_clients, **found, "service_of_direct": share}


def measured(asked, n_clients, n, task):
    level = clients.Level("closed", n, n_clients)
    asked.load.run(dealt(asked.questions, WARM_UP * n_clients), level)
    records = asked.load.run(dealt(asked.questions, n), level)
    seconds = max(one["done_s"] for one in records) - min(one["sent_s"] for one in records)
    times = sorted(1000 * one["latency_s"] for one in records)
    failed = [one["answer"].failure for one in records if one["answer"].failure]
    n_valid = sum(task.parsed(one["answer"].text) is not None for one in records)
    return {
        "n": n,
        "failed": failed[:5],
        "n_failed": len(failed),
        "n_valid": n_valid,
        "req_per_s": round(n / seconds, 2),
        "p50_ms": round(median(times), 2),
        "p95_ms": round(times[int(0.95 * len(times))], 2),
    }


def dealt(questions, n):
    return [questions[at % len(questions)] for at in range(n)]


def overloaded(args, service, process, levels, task):
    """Requests at a multiple of the best rate; how they ended, the service's memory, and how soon it answers again."""
    rate = args.overload * max(level["service"]["req_per_s"] for level in levels)
    n = int(rate * args.seconds)
    before = memory_mib(process.pid)
    load = clients.Processes(Caller, (service.address, task), 4 * clients.CLIENTS_A_PROCESS)
    records = load.run(dealt(service.questions, n), clients.Level("open", n, rate=rate))
    statuses = {}
    for one in records:
        name = (one["answer"].failure or "200").removeprefix("status ")
        statuses[name] = statuses.get(name, 0) + 1
    again = Caller(service.address, task).ask(service.questions[0])
    load.close()
    found = {
        "rate_per_s": round(rate, 1),
        "n": n,
        "statuses": statuses,
        "memory_mib": [before, memory_mib(process.pid)],
        "next_answer": again.finish_reason,
        "next_answer_ms": round(1000 * again.seconds, 1),
    }
    print(f"overload: {json.dumps(found)}", flush=True)
    return found


def memory_mib(pid):
    """Resident memory of the process and of those that it started."""
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(folder.name)) == pid:
                pages += int((folder / "statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
