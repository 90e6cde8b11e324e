"""What engines keep and cost beside one another, on the same model and rows in one run.

    python src/measure.py engines --model_path models/steward-mini --data data/test.jsonl --engines hf outlines \\
        --budgets 64 16 --out reports/engines.json
    python src/measure.py engines --table reports/engines.json --into docs/decoding.md

Every row is answered by all engines in turn, greedily: alone for the time of one answer, other rows in batches for the
rate. The first engine is the measure of the others. Times themselves, which say more about the machine, are in the JSON
alone. A smaller budget than the model's own shows what an engine keeps of an answer that is cut off.
"""

import argparse
import dataclasses
import platform
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import interruption
import locks
from common import UserError, existing_file, quiet_libraries, read_json, sha256_file, shown_path
from constrained_decode import engine_names, load_engine
from manifest import Clock, fingerprint, write_manifest
from measurements import verdict_task
from report import marked_text
from report.marked_text import md, md_table
from rows import load_rows
from tasks import DEFAULT
from tasks import facts as task_facts

MARK = "engines"
WARM_UP_ROWS = 4
HEAD = [
    "engine",
    "token budget",
    "answers",
    "valid before closing",
    "valid",
    "closed at the budget",
    "same verdict",
    "tokens an answer",
    "one answer, times as long",
    "batches, times as fast",
]


def main():
    args = parse_args()
    if not args.table:
        with locks.only_writer(args.out):
            measure(args)
    marked_text.show(engines_table(args.table or args.out), args.into, MARK)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", help="model folder")
    parser.add_argument("--config", help="the model's YAML (default: what its manifest holds)")
    parser.add_argument("--data", type=Path, help="rows; twice --rows and a few to warm up are taken")
    parser.add_argument("--engines", nargs="+", default=["hf", "outlines"], help=f"of {', '.join(engine_names())}")
    parser.add_argument("--budgets", nargs="+", type=int, help="token budgets (default: the model's own)")
    parser.add_argument("--rows", type=int, default=100, help="answered alone, and as many in batches (default 100)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows at once (default 16)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    parser.add_argument("--out", type=Path, default=Path("reports/engines.json"), help="JSON to write")
    parser.add_argument("--table", type=Path, help="measure nothing; draw the table of this report")
    parser.add_argument("--into", type=Path, help="file whose part between engines:begin and :end becomes the table")
    args = parser.parse_args()
    if not args.table and not (args.model_path and args.data):
        raise UserError("give --model_path and --data to measure, or --table with a report to draw")
    if min([args.rows, args.batch_size, *(args.budgets or [])]) < 1:
        raise UserError("--rows, --batch_size and --budgets are at least 1")
    for name in args.engines:
        if load_engine(name).NEEDS_ENDPOINT:
            raise UserError(f"--engines {name}: asks a server that runs elsewhere; only engines that run here compare")
    if args.into:
        marked_text.around(args.into, MARK)
    return args


def measure(args):
    from language_model.model_folder import model_config

    clock = Clock()
    task = verdict_task(args.task)
    rows = load_rows(existing_file(args.data, "make rows with src/synthesize.py"), task)
    n_needed = WARM_UP_ROWS + 2 * args.rows
    if len(rows) < n_needed:
        raise UserError(f"{args.data}: {len(rows):,} rows, and {n_needed:,} are needed; give fewer --rows")
    asked = [task.messages(row["input"]) for row in rows[:n_needed]]
    quiet_libraries()
    config = model_config(args, task)
    found = []
    with interruption.Journal(args.out, name_of_the_work(args, task, config), "token budgets") as journal:
        kept = dict(journal.entries)
        for budget in args.budgets or [config.gen.max_new_tokens]:
            # Sampled texts could not be compared.
            gen = dataclasses.replace(config.gen, temperature=0.0, max_new_tokens=budget)
            if budget not in kept:
                kept[budget] = measured(args, task, dataclasses.replace(config, gen=gen), asked)
                journal.add([budget, kept[budget]])
            found += kept[budget]
    write_manifest(
        args.out,
        clock,
        task=task.name,
        model={"path": shown_path(args.model_path), "title": config.name},
        data={"path": shown_path(args.data), "sha256": sha256_file(args.data)},
        rows=args.rows,
        batch_size=args.batch_size,
        engines=found,
    )
    print(f"all numbers in {args.out}")


def name_of_the_work(args, task, config):
    """The name of what is measured: an interrupted run with the same name goes on."""
    from language_model.model_folder import model_identity

    facts = {
        "rows": sha256_file(args.data),
        "model": model_identity(args.model_path),
        "config": dataclasses.asdict(config),
        "task": task_facts(task),
        "options": [args.engines, args.rows, args.batch_size],
        # Times of two machines make no table.
        "machine": platform.node(),
    }
    return fingerprint(facts, __file__, task.folder / "data.py", *(load_engine(name).__file__ for name in args.engines))


def measured(args, task, config, asked):
    """One entry an engine, all with the same budget."""
    engines = {}
    load_s = {}
    for name in args.engines:
        start = perf_counter()
        engines[name] = load_engine(name).load(args.model_path, task, config, batch_size=args.batch_size)
        # Probabilities cost an engine that is not made for them a pass of their own, which no caller here asked for.
        engines[name].tells_probabilities = False
        load_s[name] = perf_counter() - start
    for engine in engines.values():
        list(engine.answers(asked[:WARM_UP_ROWS]))
    alone = asked[WARM_UP_ROWS : WARM_UP_ROWS + args.rows]
    # An engine that guesses from earlier answers must not have written these.
    together = asked[WARM_UP_ROWS + args.rows :]
    singles = in_turns(engines, [[messages] for messages in alone])
    batches = in_turns(
        engines, [together[at : at + args.batch_size] for at in range(0, len(together), args.batch_size)]
    )
    print(
        f"token budget {config.gen.max_new_tokens}: {args.rows:,} answers alone and {args.rows:,} in batches",
        flush=True,
    )
    first = args.engines[0]
    verdicts = {name: verdicts_of(task, singles[name][1] + batches[name][1]) for name in engines}
    return [
        {
            "engine": name,
            "budget": config.gen.max_new_tokens,
            "facts": {key: value for key, value in engines[name].facts.items() if key != "outcomes"},
            "load_s": round(load_s[name], 3),
            **kept(task, singles[name][1] + batches[name][1]),
            "same_verdict_pct": share(map(same, verdicts[name], verdicts[first])),
            "alone_ms": [round(1000 * seconds, 2) for seconds in singles[name][0]],
            "p50_ms": round(1000 * median(singles[name][0]), 2),
            "rows_per_s": round(len(together) / sum(batches[name][0]), 3),
        }
        for name in args.engines
    ]


def in_turns(engines, calls):
    """{engine: (seconds of each call, all answers)}; nobody always follows the same one."""
    found = {name: ([], []) for name in engines}
    for number, conversations in enumerate(calls):
        names = list(engines)[number % len(engines) :] + list(engines)[: number % len(engines)]
        for name in names:
            start = perf_counter()
            answers = dict(engines[name].answers(conversations))
            found[name][0].append(perf_counter() - start)
            found[name][1].extend(answers[at] for at in range(len(conversations)))
    return found


def kept(task, answers):
    """What of the answers is valid, and what that took."""
    valid = [task.parsed(answer.text) is not None for answer in answers]
    closed = [bool(answer.late) for answer in answers]
    return {
        "n": len(answers),
        "valid_as_written_pct": share(is_valid and not late for is_valid, late in zip(valid, closed, strict=True)),
        "valid_pct": share(valid),
        "closed_at_budget_pct": share(closed),
        "tokens_mean": round(fmean(answer.completion_tokens for answer in answers), 2),
    }


def verdicts_of(task, answers):
    return [task.verdict.of(task.parsed(answer.text)) for answer in answers]


def same(verdict, other):
    return verdict is not None and verdict == other


def share(flags):
    flags = list(flags)
    return round(100 * sum(flags) / len(flags), 2)


def engines_table(path):
    """Markdown of one report: ratios to the first engine under the same budget."""
    report = read_json(path)
    try:
        first = {}
        rows = []
        for one in report["engines"]:
            measure = first.setdefault(one["budget"], one)
            rows.append(
                [
                    f"`{md(one['engine'])}`",
                    f"{one['budget']:,}",
                    f"{one['n']:,}",
                    *(f"{one[key]:.1f} %" for key in ("valid_as_written_pct", "valid_pct", "closed_at_budget_pct")),
                    f"{one['same_verdict_pct']:.1f} %",
                    f"{one['tokens_mean']:.1f}",
                    f"{one['p50_ms'] / measure['p50_ms']:.2f}",
                    f"{one['rows_per_s'] / measure['rows_per_s']:.2f}",
                ]
            )
        return f"{md_table(HEAD, rows, n_text=1)}\n\n{notes(report)}"
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: not a report of src/measure.py engines ({type(error).__name__}: {error}); make it again"
        ) from error


def notes(report):
    first = report["engines"][0]
    return (
        f"{md(report['model']['title'])} on {md(report['data']['path'])} ({report['data']['sha256'][:12]}), "
        f"{report['hardware']['cpu_cores']} CPU cores, greedy, {report['rows']:,} rows alone and {report['rows']:,} in "
        f"batches of {report['batch_size']}. Verdicts, times and rates are compared with `{md(first['engine'])}` under "
        'the same budget. "Closed" means that the budget cut in.'
    )
