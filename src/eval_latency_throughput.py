"""Latency and throughput of one engine: python src/eval_latency_throughput.py --model_path outputs/x-merged --backend
vllm --out reports/x_latency.csv

For every --concurrency that many clients ask one row after the other; for every --rate requests come at random moments,
that many a second, and an answer's time counts from the moment at which its request was meant to be sent. Each level is
warmed up at its own load before it is measured. Rendering, tokenisation and constraint are within the measured time.
Beside the CSV lie every request's times (..._requests.jsonl) and, written last, a manifest with flags, versions,
hardware and what this machine could do at best. --endpoint asks a server that is running already.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import math
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import interruption
import locks
from common import (
    UserError,
    existing_file,
    is_folder,
    quiet_libraries,
    read_json,
    row_id,
    run,
    sha256_file,
    shown_path,
    written_whole,
)
from constrained_decode import engine_names, load_engine
from load_test.clients import MOST_WAITING, Here, Level, MicroBatches, Processes, Streaming
from load_test.measures import MEASURES, logged, summary, verdicts_in_bulk
from manifest import Clock, fingerprint, write_manifest
from rows import load_rows
from tasks import DEFAULT, load_task
from tasks import facts as task_facts

CONCURRENCY = (1, 4, 8, 16)
REQUESTS = 200
ROUNDS = 4  # at least so many answers a client
LEAST_WARM_UP = 8
HEAD = ("model", "title", "backend", "decoding", "weights")
SHOWN = {
    "decoding": "decoding",
    "load": "load",
    "n": "n",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "first_token_p50_ms": "first token",
    "req_per_s": "req/s",
    "output_tok_per_s": "tok/s",
    "json_valid_pct": "valid %",
    "p50_of_floor": "x limit",
    "req_per_s_of_floor_pct": "% of limit",
}


def main():
    args = parse_args()
    if args.show:
        print(table(args.show))
        return
    with locks.only_writer(args.out.with_suffix("")):
        deck = measure(args)
    print(
        f"\n{table([*args.beside, args.out])}\n\nall numbers in {args.out}, every request in {requests_path(args.out)}"
    )
    if deck.n_repeated:
        print(
            f"note: {deck.n_repeated:,} requests asked a row again, which is cheaper for a server that keeps prompts; "
            "--data with more rows avoids it"
        )


def measure(args):
    """Measure every level and write the files; the Deck that the requests came from."""
    clock = Clock()
    task = load_task(args.task)
    config = settings(args)
    data = existing_file(args.data or task.under("data") / "test.jsonl", "run make prep first")
    rows = load_rows(data, task)
    deck = Deck(rows, task)
    quiet_libraries()
    with interruption.Journal(args.out, name_of_the_work(args, task, config, data), "levels") as journal:
        journal.report()
        machine = machine_rates(args)
        with opened(args, task, config, deck.conversations) as (load, engine):
            roofline = roofline_of(machine, args.model_path, engine)
            levels, log = measured_levels(args, task, load, engine, deck, roofline, journal)
            write(args, task, config, clock, engine.facts, rows, levels, log, deck, roofline)
    return deck


def name_of_the_work(args, task, config, data):
    """The name of what is measured: an interrupted run with the same name goes on."""
    from language_model.model_folder import model_identity

    engine = load_engine(args.backend)
    options = ("backend", "endpoint", "unconstrained", "random_weights", "engine_args", "requests")
    facts = {
        "rows": sha256_file(data),
        "config": dataclasses.asdict(config),
        "model": args.model_path and not args.random_weights and model_identity(args.model_path),
        "task": task_facts(task),
        "options": {name: getattr(args, name) for name in options},
        # Times of two machines make no table.
        "machine": platform.node(),
    }
    return fingerprint(facts, __file__, engine.__file__)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_load_arguments(parser)
    add_output_arguments(parser)
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return checked(parser.parse_args())


def add_model_arguments(parser):
    parser.add_argument(
        "--model_path",
        help="merged model folder, or with --endpoint its name there (default: the first model that the server lists)",
    )
    parser.add_argument(
        "--name", help="what the model is called in reports (default: --config's name, else --out's without _latency)"
    )
    parser.add_argument(
        "--backend", help=f"engine: {', '.join(engine_names())} (default hf; openai_api with --endpoint)"
    )
    parser.add_argument(
        "--endpoint", help="address of an OpenAI-compatible server that is running, as http://localhost:8000/v1"
    )
    parser.add_argument("--schema", help="the answer's JSON Schema (default: the task's own)")
    parser.add_argument("--config", help="the model's YAML, for a model that the pipeline did not train")
    parser.add_argument(
        "--unconstrained", action="store_true", help="let the model write what it likes: what the JSON guarantee costs"
    )
    parser.add_argument(
        "--random_weights",
        action="store_true",
        help="the model's shape with random weights: for speed and memory, the folder needs none",
    )
    parser.add_argument(
        "--engine_args",
        default="",
        help='more arguments for a server that is started here: --engine_args="--dtype half"',
    )


def add_load_arguments(parser):
    parser.add_argument("--data", help="labelled rows to ask about (default data/test.jsonl)")
    parser.add_argument(
        "--concurrency",
        type=int,
        nargs="*",
        default=CONCURRENCY,
        help="closed loop: clients at a time (default 1 4 8 16)",
    )
    parser.add_argument("--rate", type=float, nargs="*", default=(), help="open loop: requests a second (default none)")
    parser.add_argument(
        "--requests",
        type=int,
        default=REQUESTS,
        help=f"measured requests a level (default {REQUESTS}; at least {ROUNDS} a client)",
    )
    parser.add_argument(
        "--verdicts", action="store_true", help="also score all rows in bulk: probabilities from one pass, no text"
    )
    parser.add_argument("--no_floor", action="store_true", help="do not measure what this machine could do at best")


def add_output_arguments(parser):
    parser.add_argument(
        "--out",
        type=Path,
        help="CSV to write, one line a level; its name ends in _latency.csv where make report is to find it",
    )
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], help="CSVs of other runs, shown in one table with this one"
    )
    parser.add_argument("--show", type=Path, nargs="+", help="measure nothing; show these CSVs in one table")


def checked(args):
    for path in [*(args.show or ()), *args.beside]:
        check_table(path)
    if args.show:
        return args
    args.backend = args.backend or ("openai_api" if args.endpoint else "hf")
    if not args.out or not (args.model_path or args.endpoint):
        raise UserError("give --out, and --model_path or --endpoint; or --show with CSVs that were measured")
    if args.out.suffix != ".csv":
        raise UserError(f"--out {args.out}: a .csv is written")
    check_engine(args)
    check_load(args)
    return args


def check_table(path):
    with open(existing_file(path, "measure it first"), encoding="utf-8", errors="replace") as file:
        missing = {*HEAD, *MEASURES} - set(next(csv.reader(file), ()))
    if missing:
        raise UserError(f"{path}: not a benchmark's CSV, it has no column {min(missing)!r}")


def check_engine(args):
    module = load_engine(args.backend)
    if args.endpoint and not module.NEEDS_ENDPOINT:
        raise UserError(
            f"--backend {args.backend} with --endpoint: a server that is running is asked through openai_api; leave "
            "--backend out"
        )
    if module.NEEDS_ENDPOINT and not args.endpoint:
        raise UserError(f"--backend {args.backend} asks a server that is running: name it with --endpoint")
    if args.random_weights and not module.RANDOM_WEIGHTS:
        raise UserError(
            f"--random_weights: --backend {args.backend} cannot do without a model's weights; only an engine that "
            "is started here and loads them itself can"
        )
    if args.engine_args and not module.STARTS_SERVER:
        raise UserError(f"--engine_args: --backend {args.backend} starts no server that they could go to")


def check_load(args):
    task = load_task(args.task)
    if any(value <= 0 or not math.isfinite(value) for value in [args.requests, *args.concurrency, *args.rate]):
        raise UserError("--concurrency, --rate and --requests are numbers above 0")
    if args.verdicts and not task.verdict:
        raise UserError(f"--verdicts: the answers of task {task.name} hold no verdict")
    if not args.concurrency and not args.rate and not args.verdicts:
        raise UserError("nothing to measure: give --concurrency, --rate or --verdicts")
    if args.schema and read_json(args.schema) != task.answer_schema:
        raise UserError(
            f"{args.schema}: differs from the task's own schema; the answers are checked against one schema only"
        )


def settings(args):
    from language_model import model_folder

    task = load_task(args.task)
    return model_folder.served_config(args, task) if args.endpoint else model_folder.model_config(args, task)


class Deck:
    """Rows as conversations, dealt out one after the other and again from the beginning."""

    def __init__(self, rows, task):
        self.ids = [row_id(row) for row in rows]
        self.conversations = [task.messages(row["input"]) for row in rows]
        self.dealt = 0

    def take(self, n):
        places = [(self.dealt + at) % len(self.ids) for at in range(n)]
        self.dealt += n
        return [self.ids[at] for at in places], [self.conversations[at] for at in places]

    @property
    def n_repeated(self):
        return max(0, self.dealt - len(self.ids))


@contextlib.contextmanager
def opened(args, task, config, conversations):
    """(who sends the load, the engine that is asked), closed at the end."""
    module = load_engine(args.backend)
    most = max(args.concurrency, default=LEAST_WARM_UP)
    n_clients = MOST_WAITING if args.rate else most
    options = {"constrained": not args.unconstrained} | ({"random_weights": True} if args.random_weights else {})
    if not module.STARTS_SERVER and not module.NEEDS_ENDPOINT:
        engine = module.load(args.model_path, task, config, batch_size=most, **options)
        # A plain caller has no probabilities, and they cost a pass of their own.
        engine.tells_probabilities = not args.unconstrained
        engine.prepare(conversations)
        yield Here(MicroBatches(engine)), engine
        return
    with contextlib.ExitStack() as stack:
        endpoint = args.endpoint
        facts = {}
        if not endpoint:
            endpoint, facts = stack.enter_context(
                module.serve(args.model_path, task, config, most, args.engine_args, log_path(args.out), **options)
            )
        reached = (args.model_path, task, config, endpoint, n_clients, not args.unconstrained)
        engine = module.connect(*reached)
        engine.check()
        engine.facts |= facts
        engine.facts.pop("outcomes", None)  # of this check alone; the requests' own are in their log
        load = Processes(Streaming, (module.connect, *reached), most)
        stack.callback(load.close)
        yield load, engine


def log_path(out):
    return out.with_name(out.stem + "_server.log")


def requests_path(out):
    return out.with_name(out.stem + "_requests.jsonl")


def manifest_path(out):
    return out.with_suffix(".manifest.json")


def machine_rates(args):
    """What this machine can do; None where that would say nothing, for the model's shape is not here."""
    if not is_folder(args.model_path) or args.endpoint or args.no_floor:
        return None
    import torch

    from load_test.roofline import measured_machine

    print("measuring this machine: memory bandwidth and matrix rate", flush=True)
    return apart(measured_machine) if torch.cuda.is_available() else measured_machine()


def apart(work):
    """The result of a function run in a process of its own, which gives all of the GPU's memory back."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=interruption.leave_to_parent) as pool:
        return pool.submit(work).result()


def roofline_of(machine, model_path, engine):
    from load_test.roofline import Roofline

    return Roofline(machine, model_path, engine.facts.get("precision")) if machine else None


def measured_levels(args, task, load, engine, deck, roofline, journal):
    """(one summary a level, one record a request)"""
    summaries = []
    log = []
    kept = dict(journal.entries)
    for level in [
        *(Level("closed", max(args.requests, ROUNDS * concurrency), concurrency) for concurrency in args.concurrency),
        *(Level("open", args.requests, rate=rate) for rate in args.rate),
    ]:
        # Rows that a kept level has asked are dealt out again, so that each level asks those of an uninterrupted run.
        warm_up = deck.take(max(LEAST_WARM_UP, 2 * (level.concurrency or 0)))[1]
        ids, conversations = deck.take(level.n)
        found = kept.get(level.title)
        if not found:
            load.run(warm_up, level)
            records = load.run(conversations, level)
            found = [logged(task, level, id, record) for id, record in zip(ids, records, strict=True)]
            journal.add([level.title, found])
        log += found
        summaries.append(summary(task, level, found, roofline))
        print(
            f"{level.title}: p50 {summaries[-1]['p50_ms']:,.1f} ms, {summaries[-1]['req_per_s']:,.2f} requests/s",
            flush=True,
        )
    if args.verdicts:
        n = max(args.requests, ROUNDS * max(args.concurrency, default=0))
        summaries.append(verdicts_in_bulk(engine, deck.take(n)[1], deck.take(n)[1], roofline))
        print(f"verdicts in bulk: {summaries[-1]['req_per_s']:,.1f} rows/s", flush=True)
    return summaries, log


def write(args, task, config, clock, facts, rows, levels, log, deck, roofline):
    """CSV and log, then the manifest."""
    name = args.name or (Path(args.config).stem if args.config else args.out.stem.removesuffix("_latency"))
    decoding = facts["decoding"]
    weights = "random" if args.random_weights else "trained"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*HEAD, *MEASURES])
    writer.writerows(
        [name, config.name, args.backend, decoding, weights, *(level[key] for key in MEASURES)] for level in levels
    )
    with written_whole(args.out, requests_path(args.out)) as (table_file, log_file):
        table_file.write(out.getvalue())
        log_file.writelines(json.dumps(record) + "\n" for record in log)
        for file in (table_file, log_file):
            file.flush()
        # A full disk has shown by now: only a manifest whose files will be replaced goes.
        manifest_path(args.out).unlink(missing_ok=True)
    data = Path(args.data or task.under("data") / "test.jsonl")
    write_manifest(
        manifest_path(args.out),
        clock,
        task=task.name,
        model=name,
        title=config.name,
        checkpoint=config.model_id,
        backend=args.backend,
        decoding=decoding,
        weights=weights,
        engine=facts,
        gen=dataclasses.asdict(config.gen),
        requests_repeated=deck.n_repeated,
        data={"path": shown_path(data), "sha256": sha256_file(data), "rows": len(rows)},
        floor=roofline and roofline.facts,
        levels=levels,
        csv_sha256=sha256_file(args.out),
    )


def table(paths):
    """The runs' levels side by side, as plain text."""
    lines = [["engine", *SHOWN.values()]]
    for path in paths:
        for row in csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))):
            row["load"] = {"closed": f"C={row['concurrency']}", "open": f"{row['rate_per_s']}/s"}.get(
                row["form"], "verdicts"
            )
            lines.append([row["backend"], *(shown(row[key]) for key in SHOWN)])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def shown(value):
    try:
        return f"{float(value):,.1f}" if "." in value else f"{int(value):,}"
    except ValueError:
        return value or "-"


if __name__ == "__main__":
    run(main)
