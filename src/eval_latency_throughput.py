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
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

from common import (
    UserError,
    WorkFailed,
    existing_file,
    is_folder,
    parsed_answer,
    quiet_libraries,
    read_json,
    row_id,
    run,
    sha256_file,
    shown_path,
    written_whole,
)
from constrained_decode import engine_names, load_engine
from load.clients import MOST_WAITING, Here, Level, MicroBatches, Processes
from manifest import Clock, write_manifest
from rows import load_rows
from tasks import DEFAULT, load_task

CONCURRENCY = (1, 4, 8, 16)
REQUESTS = 200
ROUNDS = 4  # at least so many answers a client
LEAST_WARM_UP = 8
HEAD = ("model", "title", "backend", "decoding", "weights")
MEASURES = (
    "form",
    "concurrency",
    "rate_per_s",
    "n",
    "n_failed",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "first_token_p50_ms",
    "first_token_p95_ms",
    "req_per_s",
    "output_tok_per_s",
    "prompt_tok_per_s",
    "prompt_tokens_mean",
    "output_tokens_mean",
    "json_valid_raw_pct",
    "json_valid_pct",
    "closed_at_budget_pct",
    "mask_overruled_pct",
    "floor_p50_ms",
    "p50_of_floor",
    "floor_req_per_s",
    "req_per_s_of_floor_pct",
)
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
    "p50_of_floor": "x floor",
    "req_per_s_of_floor_pct": "% of floor",
}


def main():
    args = parse_args()
    if args.show:
        print(table(args.show))
        return
    clock = Clock()
    task = load_task(args.task)
    config = settings(args)
    rows = load_rows(existing_file(args.data or task.under("data") / "test.jsonl", "run make prep first"), task)
    deck = Deck(rows, task)
    quiet_libraries()
    # Of a model whose shape is not here nothing can be said.
    machine = apart(machine_of) if is_folder(args.model_path) and not args.endpoint and not args.no_floor else None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with opened(args, task, config, deck.conversations) as (load, engine):
        floor = Floor(machine, args.model_path, engine) if machine else None
        levels, log = measured_levels(args, task, load, engine, deck, floor)
        write(args, task, config, clock, engine.facts, rows, levels, log, deck, floor)
    print(
        f"\n{table([*args.beside, args.out])}\n\nall numbers in {args.out}, every request in {requests_path(args.out)}"
    )
    if deck.n_repeated:
        print(
            f"note: {deck.n_repeated:,} requests asked a row again, which is cheaper for a server that keeps prompts; "
            "--data with more rows avoids it"
        )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_path",
        help="merged model folder, or with --endpoint its name there (default: the first model that the server lists)",
    )
    parser.add_argument(
        "--backend", help=f"engine: {', '.join(engine_names())} (default hf; openai_api with --endpoint)"
    )
    parser.add_argument(
        "--endpoint", help="address of an OpenAI-compatible server that is running, as http://localhost:8000/v1"
    )
    parser.add_argument("--schema", help="the answer's JSON Schema (default: the task's own)")
    parser.add_argument("--data", help="labelled rows to ask about (default data/test.jsonl)")
    parser.add_argument("--config", help="the model's YAML, for a model that the pipeline did not train")
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
    parser.add_argument("--no_floor", action="store_true", help="do not measure what this machine could do at best")
    parser.add_argument(
        "--out",
        type=Path,
        help="CSV to write, one line a level; its name ends in _latency.csv where make report is to find it",
    )
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], help="CSVs of other runs, shown in one table with this one"
    )
    parser.add_argument("--show", type=Path, nargs="+", help="measure nothing; show these CSVs in one table")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return checked(parser.parse_args())


def checked(args):
    for path in [*(args.show or ()), *args.beside]:
        with open(existing_file(path, "measure it first"), encoding="utf-8", errors="replace") as file:
            missing = {*HEAD, *MEASURES} - set(next(csv.reader(file), ()))
        if missing:
            raise UserError(f"{path}: not a benchmark's CSV, it has no column {min(missing)!r}")
    if args.show:
        return args
    args.backend = args.backend or ("openai_api" if args.endpoint else "hf")
    if args.endpoint and args.backend != "openai_api":
        raise UserError(
            f"--backend {args.backend} with --endpoint: a server that is running is asked through openai_api; leave "
            "--backend out"
        )
    if not args.out or not (args.model_path or args.endpoint):
        raise UserError("give --out, and --model_path or --endpoint; or --show with CSVs that were measured")
    if args.backend == "openai_api" and not args.endpoint:
        raise UserError("--backend openai_api asks a server that is running: name it with --endpoint")
    if args.random_weights and (args.endpoint or args.backend == "llama_cpp"):
        raise UserError(
            "--random_weights: only an engine that is started here and loads the weights itself can do without them "
            "(hf, vllm, sglang)"
        )
    if args.engine_args and not hasattr(load_engine(args.backend), "serve"):
        raise UserError(f"--engine_args: --backend {args.backend} starts no server that they could go to")
    if args.out.suffix != ".csv":
        raise UserError(f"--out {args.out}: a .csv is written")
    if any(value <= 0 or not math.isfinite(value) for value in [args.requests, *args.concurrency, *args.rate]):
        raise UserError("--concurrency, --rate and --requests are numbers above 0")
    if not args.concurrency and not args.rate and not args.verdicts:
        raise UserError("nothing to measure: give --concurrency, --rate or --verdicts")
    if args.schema and read_json(args.schema) != load_task(args.task).answer_schema:
        raise UserError(
            f"{args.schema}: differs from the task's own schema; the answers are checked against one schema only"
        )
    return args


def settings(args):
    from language_model import model_folder

    return model_folder.served_config(args) if args.endpoint else model_folder.model_config(args)


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
    if not hasattr(module, "connect"):
        engine = module.load(args.model_path, task, config, batch_size=most, **options)
        engine.tells_probabilities = (
            not args.unconstrained
        )  # a plain caller has none, and they cost a pass of their own
        if hasattr(engine, "prepare"):
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
        reached = (args.model_path, task.name, config, endpoint, n_clients, not args.unconstrained)
        engine = module.connect(*reached)
        engine.check()
        engine.facts |= facts
        engine.facts.pop("outcomes", None)  # of this check alone; the requests' own are in their log
        load = Processes(module.connect, reached, most)
        stack.callback(load.close)
        yield load, engine


def log_path(out):
    return out.with_name(out.stem + "_server.log")


def requests_path(out):
    return out.with_name(out.stem + "_requests.jsonl")


def manifest_path(out):
    return out.with_suffix(".manifest.json")


def machine_of():
    from load import roofline as floor

    return floor.measured_machine()


def apart(work):
    """The result of a function run in a process of its own, which gives all of the GPU's memory back."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


class Floor:
    """What this machine allows this model."""

    def __init__(self, machine, model_path, engine):
        from transformers import AutoConfig

        from load import roofline as floor

        bytes_a_number = {"float32": 4}.get(engine.facts.get("precision"), 2)
        self.floor = floor
        self.machine = machine
        self.shape = floor.model_shape(AutoConfig.from_pretrained(model_path), bytes_a_number, kv_bytes=bytes_a_number)

    @property
    def facts(self):
        return self.floor.facts(self.machine, self.shape)

    def answers(self, n_rows, prompt_tokens, written_tokens):
        """(p50 in ms, requests a second)"""
        seconds, rate = self.floor.answers_floor(self.machine, self.shape, n_rows, prompt_tokens, written_tokens)
        return 1000 * seconds, rate

    def verdicts_a_s(self, prompt_tokens):
        return 1 / self.floor.prompt_s(self.machine, self.shape, prompt_tokens)


def measured_levels(args, task, load, engine, deck, floor):
    """(one summary a level, one record a request)"""
    import jsonschema

    schema = jsonschema.Draft202012Validator(task.answer_schema)
    summaries = []
    log = []
    for level in [
        *(Level("closed", max(args.requests, ROUNDS * concurrency), concurrency) for concurrency in args.concurrency),
        *(Level("open", args.requests, rate=rate) for rate in args.rate),
    ]:
        load.run(deck.take(max(LEAST_WARM_UP, 2 * (level.concurrency or 0)))[1], level)
        ids, conversations = deck.take(level.n)
        records = load.run(conversations, level)
        found = [logged(level, at, record, schema) for at, record in zip(ids, records, strict=True)]
        log += found
        summaries.append(summary(level, found, floor))
        print(
            f"{level.title}: p50 {summaries[-1]['p50_ms']:,.1f} ms, {summaries[-1]['req_per_s']:,.2f} requests/s",
            flush=True,
        )
    if args.verdicts:
        summaries.append(bulk(engine, deck, max(args.requests, ROUNDS * max(args.concurrency, default=0)), floor))
        print(f"verdicts in bulk: {summaries[-1]['req_per_s']:,.1f} rows/s", flush=True)
    return summaries, log


def logged(level, id, record, schema):
    """A request as the log keeps it: times and counts, no record text."""
    answer = record.pop("answer")
    failed = answer.finish_reason.startswith("failed")
    valid = parsed_answer(answer.text, schema) is not None
    return {
        "form": level.form,
        "concurrency": level.concurrency,
        "rate_per_s": level.rate,
        "id": id,
        **record,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "settled_tokens": answer.n_settled,
        "finish_reason": answer.finish_reason,
        "failed": failed,
        "valid": valid,
        "overruled": answer.overruled,
        "late": answer.late,
    }


def summary(level, requests, floor):
    """One line of the CSV."""
    answered = [request for request in requests if not request["failed"]]
    if not answered:
        raise WorkFailed(
            f"{level.title}: all {len(requests):,} requests failed; the first: {requests[0]['finish_reason']}"
        )
    seconds = max(one["done_s"] for one in requests) - min(one["intended_s"] for one in requests)
    return rounded(
        {
            "form": level.form,
            "concurrency": level.concurrency,
            "rate_per_s": level.rate,
            "n": len(requests),
            "n_failed": len(requests) - len(answered),
            **times(answered),
            **rates(answered, len(answered) / seconds),
            **validity(answered),
        }
        | beside_floor(level, answered, len(answered) / seconds, floor)
    )


def times(answered):
    return {
        "p50_ms": percentile(answered, "latency_s", 50),
        "p95_ms": percentile(answered, "latency_s", 95),
        "p99_ms": percentile(answered, "latency_s", 99),
        "first_token_p50_ms": percentile(answered, "first_token_s", 50),
        "first_token_p95_ms": percentile(answered, "first_token_s", 95),
    }


def rates(answered, rate):
    output_tokens, prompt_tokens = (
        fmean([one[key] for one in answered]) for key in ("completion_tokens", "prompt_tokens")
    )
    return {
        "req_per_s": rate,
        "output_tok_per_s": rate * output_tokens,
        "prompt_tok_per_s": rate * prompt_tokens,
        "prompt_tokens_mean": prompt_tokens,
        "output_tokens_mean": output_tokens,
    }


def validity(answered):
    """Shares of valid answers; what the guarantee did to make them so only where the engine tells all of it."""
    told = {key: all(one[key] is not None for one in answered) for key in ("overruled", "late")}
    own = [one["valid"] and not one["late"] and not one["overruled"] for one in answered]
    n_tokens = max(1, sum(one["completion_tokens"] for one in answered))
    return {
        "json_valid_raw_pct": 100 * fmean(own) if all(told.values()) else None,
        "json_valid_pct": 100 * fmean([one["valid"] for one in answered]),
        "closed_at_budget_pct": 100 * fmean([one["late"] > 0 for one in answered]) if told["late"] else None,
        "mask_overruled_pct": 100 * sum(one["overruled"] for one in answered) / n_tokens if told["overruled"] else None,
    }


def beside_floor(level, answered, rate, floor):
    best_p50 = best_rate = None
    if floor and level.concurrency:
        # The median answer is held against the floor of a median one, the rate against that of a mean one.
        prompts = [one["prompt_tokens"] for one in answered]
        written = [one["completion_tokens"] - one["settled_tokens"] for one in answered]
        best_p50, _ = floor.answers(level.concurrency, median(prompts), median(written))
        _, best_rate = floor.answers(level.concurrency, fmean(prompts), fmean(written))
    return {
        "floor_p50_ms": best_p50,
        "p50_of_floor": percentile(answered, "latency_s", 50) / best_p50 if best_p50 else None,
        "floor_req_per_s": best_rate,
        "req_per_s_of_floor_pct": 100 * rate / best_rate if best_rate else None,
    }


def bulk(engine, deck, n, floor):
    """Verdicts alone, rows in the engine's own batches."""
    list(engine.verdicts(deck.take(n)[1]))
    _, conversations = deck.take(n)
    start = perf_counter()
    found = list(engine.verdicts(conversations))
    seconds = perf_counter() - start
    chat = getattr(engine, "chat", None)
    tokens = fmean([len(ids) for ids in chat.prompts_ids(conversations)]) if chat else None
    best = floor.verdicts_a_s(tokens) if floor and tokens else None
    return rounded(
        dict.fromkeys(MEASURES)
        | {
            "form": "verdicts",
            "n": len(found),
            "n_failed": 0,
            "req_per_s": n / seconds,
            "prompt_tok_per_s": tokens and tokens * n / seconds,
            "prompt_tokens_mean": tokens,
            "floor_req_per_s": best,
            "req_per_s_of_floor_pct": best and 100 * n / seconds / best,
        }
    )


def percentile(requests, key, share):
    """In milliseconds; None where the engine does not tell."""
    import numpy as np

    values = [one[key] for one in requests if one[key] is not None]
    return 1000 * float(np.percentile(values, share)) if values else None


def rounded(values):
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values.items()}


def write(args, task, config, clock, facts, rows, levels, log, deck, floor):
    """CSV and log, then the manifest."""
    name = model_name(args.out)
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
        floor=floor and floor.facts,
        levels=levels,
        csv_sha256=sha256_file(args.out),
    )


def model_name(out):
    """reports/phi4mini_hf_plain_latency.csv -> phi4mini"""
    name = out.stem.removesuffix("_latency").removesuffix("_plain")
    return next((name.removesuffix(f"_{engine}") for engine in engine_names() if name.endswith(f"_{engine}")), name)


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
