"""What HTTP and the waiting line cost: python src/measure_service.py --out reports/service.json

The same pairs are answered by the model in this process and by the service it starts, clients in processes of their own, at every --concurrency in
turn, and the order of the two changes from one level to the next. --overload sends that many times what the service managed, for --seconds.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import load_test
from ask import SHIPPED, pairs_from_file
from common import ROOT, Clock, UserError, WorkFailed, quiet_libraries, run, write_manifest
from constrained_decode import Answer, _server, load_engine
from predict import model_config
from tasks import load_task

CONCURRENCY = (1, 8, 32, 64)
WARM_UP = 2         # requests a client


def main():
    args = parse_args()
    clock, task = Clock(), load_task()
    quiet_libraries()
    engine, levels = loaded(task), []
    pairs = [pair for pair in pairs_for(args, task) if fits(engine, task.messages(pair))]
    with served(args) as (address, process):
        clients = load_test.Processes(Caller, (address,), max(args.concurrency))
        direct = load_test.Here(load_test.MicroBatches(engine))
        for at, n_clients in enumerate(args.concurrency):
            contenders = [("service", clients, pairs), ("direct", direct, [task.messages(pair) for pair in pairs])]
            found = {}
            for name, load, asked in contenders[::-1] if at % 2 else contenders:
                found[name] = measured(load, asked, n_clients, args.requests)
            levels.append({"concurrency": n_clients, **found, "service_of_direct": round(found["service"]["req_per_s"] / found["direct"]["req_per_s"], 3)})
            print(f"{n_clients} at a time: service {found['service']['req_per_s']:.1f} requests/s, p50 {found['service']['p50_ms']:.0f} ms; "
                  f"direct {found['direct']['req_per_s']:.1f}, {found['direct']['p50_ms']:.0f} ms; {levels[-1]['service_of_direct']:.2f} of it", flush=True)
        overload = overloaded(args, address, process, pairs, levels) if args.overload else None
        clients.close()
    write_manifest(args.out, clock, levels=levels, overload=overload, requests=args.requests, model=SHIPPED)
    print(f"in {args.out}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--pairs", help="pairs to ask about (default: synthetic ones)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY, help="clients at a time (default 1 8 32 64)")
    parser.add_argument("--requests", type=int, default=10_000, help="requests over all levels (default 10,000)")
    parser.add_argument("--overload", type=float, default=0, help="times the measured rate to send then (default: not)")
    parser.add_argument("--seconds", type=float, default=60, help="of overload (default 60)")
    args = parser.parse_args()
    if args.requests < len(args.concurrency) or min(args.concurrency) < 1:
        raise UserError("--requests and --concurrency are numbers above 0")
    return args


def pairs_for(args, task):
    if args.pairs:
        return [case for _, case in pairs_from_file(args.pairs, task)]
    return [row["input"] for row in task.module("synthetic").rows(2_000, 1)]


@contextlib.contextmanager
def served(args):
    port = _server.free_port()
    log = args.out.with_suffix(".log")
    command = [sys.executable, str(ROOT / "src/serve.py"), "--port", str(port)]
    with _server.running(command, f"http://127.0.0.1:{port}/readyz", log) as process:
        yield f"http://127.0.0.1:{port}", process


class Caller:
    """A client of the service: asks about a pair, gives an Answer."""

    def __init__(self, address):
        import httpx2

        self.client = httpx2.Client(base_url=address, timeout=60, trust_env=False, limits=httpx2.Limits(max_connections=load_test.MOST_WAITING))

    def ask(self, pair):
        start = time.perf_counter()
        response = self.client.post("/match", json=pair)
        reason = "stop" if response.status_code == 200 else f"failed: status {response.status_code}"
        return Answer(response.text, reason, 0, 0, None, time.perf_counter() - start)


def loaded(task):
    folder = ROOT / SHIPPED
    return load_engine("hf").load(folder, task, model_config(argparse.Namespace(config=None, model_path=folder)))


def fits(engine, messages):
    """Whether the model can read so much; the service would refuse it."""
    try:
        engine.check_prompt(messages)
    except UserError:
        return False
    return True


def measured(load, asked, n_clients, n_requests):
    n = max(n_clients * 4, n_requests // len(CONCURRENCY))
    level = load_test.Level("closed", n, n_clients)
    load.run([asked[at % len(asked)] for at in range(WARM_UP * n_clients)], level)
    records = load.run([asked[at % len(asked)] for at in range(n)], level)
    seconds = max(one["done_s"] for one in records) - min(one["sent_s"] for one in records)
    times = sorted(1000 * one["latency_s"] for one in records)
    failed = [one["answer"].finish_reason for one in records if one["answer"].finish_reason.startswith("failed")]
    return {"n": n, "failed": failed[:5], "n_failed": len(failed), "req_per_s": round(n / seconds, 2), "p50_ms": round(median(times), 2),
            "p95_ms": round(times[int(0.95 * len(times))], 2)}


def overloaded(args, address, process, pairs, levels):
    """Requests at a multiple of the best rate; how they ended, the service's memory, and how soon it answers again."""
    rate = args.overload * max(level["service"]["req_per_s"] for level in levels)
    n = int(rate * args.seconds)
    before = memory_mib(process.pid)
    clients = load_test.Processes(Caller, (address,), 4 * load_test.CLIENTS_A_PROCESS)
    records = clients.run([pairs[at % len(pairs)] for at in range(n)], load_test.Level("open", n, rate=rate))
    statuses = {}
    for one in records:
        reason = one["answer"].finish_reason
        name = "200" if reason == "stop" else reason.removeprefix("failed: status ")
        statuses[name] = statuses.get(name, 0) + 1
    again = Caller(address).ask(pairs[0])
    clients.close()
    told = {"rate_per_s": round(rate, 1), "n": n, "statuses": statuses, "memory_mib": [before, memory_mib(process.pid)],
            "next_answer": again.finish_reason, "next_answer_ms": round(1000 * again.seconds, 1)}
    print(f"overload: {json.dumps(told)}", flush=True)
    if set(statuses) - {"200", "429"}:
        raise WorkFailed(f"under overload other answers came than 200 and 429: {statuses}")
    return told


def memory_mib(pid):
    """Resident memory of the process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


if __name__ == "__main__":
    run(main)
