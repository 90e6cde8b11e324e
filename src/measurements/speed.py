"""How fast the model answers on a CPU, beside a plain float32 `generate` loop and gradient boosting, in one run.

    python src/measure.py speed --model_path models/steward-mini --data data/test.jsonl --fit data/train.jsonl \\
        --out reports/speed.json
    python src/measure.py speed --table reports/speed.json --into docs/results.md

Every repeat has rows of its own, which all contenders answer in turn, each from records to text or verdict: the engine
guesses from earlier answers, and must not have seen these. A ratio is taken within a repeat, where all contenders met
the same load of the machine; the median over repeats counts. The times themselves, which say more about the machine,
are in the JSON alone. Where a task's answers hold no verdict, there is no boosting, and whole answers alone are timed.
"""

import argparse
import dataclasses
import os
from pathlib import Path
from time import perf_counter

import locks
from common import UserError, existing_file, quiet_libraries, sha256_file, shown_path, usable_cores
from manifest import Clock, write_manifest
from measurements import _reports
from measurements._record_sets import model_facts
from report import marked_text
from report.marked_text import md, md_table
from tasks import DEFAULT, load_task

TITLES = {
    "plain_one": "Plain float32 `generate`, one {case} at a time",
    "plain_batched": "Plain float32 `generate`, {plain} at once",
    "answer_one": "Full answer, one {case} at a time",
    "answer_batched": "Full answer, {batch} at once",
    "verdict_one": "Verdict, one {case} at a time",
    "verdict_batched": "Verdict, {batch} at once",
    "boosting_one": "Gradient boosting, one {case} at a time",
    "boosting_batched": "Gradient boosting, all at once",
}
PLAIN_BATCH = 16
WARM_UP_ROWS = 16
LEAST_FIT_ROWS = 50
MARK = "speed"


def main():
    args = parse_args()
    if not args.table:
        with locks.only_writer(args.out):
            measure(args)
    marked_text.show(speed_table(args.table or args.out), args.into, MARK)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", help="model folder")
    parser.add_argument(
        "--config", help="the model's YAML, where its folder has no manifest.json that holds its settings"
    )
    add_row_options(parser)
    parser.add_argument("--batch_size", type=int, help="cases at once in the engine (default: its own)")
    parser.add_argument(
        "--threads",
        type=int,
        default=usable_cores(),
        help="PyTorch's threads (default: one a core)",
    )
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    parser.add_argument("--table", type=Path, help="measure nothing; draw the table of this report")
    parser.add_argument(
        "--into", type=Path, help="file whose part between the comments speed:begin and speed:end becomes the table"
    )
    args = parser.parse_args()
    args.backend = "hf"
    return checked_args(args)


def add_row_options(parser):
    parser.add_argument("--data", type=Path, help="labelled rows; the first ones are answered")
    parser.add_argument(
        "--fit", type=Path, help="rows that boosting is fitted on (default: those of --data that are not answered)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reports/speed.json"), help="JSON to write (default reports/speed.json)"
    )
    parser.add_argument(
        "--rows", type=int, default=200, help="rows to answer, shared out among the repeats (default 200)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repeats (default 5)")


def checked_args(args):
    if not args.table and not (args.model_path and args.data):
        raise UserError("give --model_path and --data to measure, or --table with a report to draw")
    for option in ("rows", "repeats", "threads", "batch_size"):
        if (given := getattr(args, option)) is not None and given < 1:
            raise UserError(f"--{option} {given}: at least 1")
    if args.rows < args.repeats:
        raise UserError(f"--rows {args.rows}: every one of the {args.repeats} repeats needs rows of its own")
    if args.into:
        marked_text.around(args.into, MARK)
    return args


def measure(args):
    """Time every contender on every repeat's rows and write the report."""
    clock = Clock()
    task = load_task(args.task)
    warm_up, slices, fit_rows = shared_out(args, task)
    # A CPU's speed is asked for, also where a GPU is at hand.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    quiet_libraries()
    import torch

    torch.set_num_threads(args.threads)
    contenders = Contenders(args, task, fit_rows)
    for call in contenders.calls.values():
        call(warm_up)
    seconds, answers = timed(contenders.calls, slices)
    write_manifest(
        args.out,
        clock,
        task=task.name,
        model=model_facts(args, task),
        engine=contenders.engines["batched"].facts,
        threads=args.threads,
        boosting=contenders.boosting and {"method": contenders.boosting.method, "rows": len(fit_rows), "threads": 1},
        plain_batch=PLAIN_BATCH,
        data={"path": shown_path(args.data), "sha256": sha256_file(args.data)},
        rows=sum(map(len, slices)),
        repeats=len(slices),
        seconds_per_pair=seconds,
        ratios=ratios(seconds),
        same_text_as_plain_one=same_texts(answers),
    )
    print(f"all numbers in {args.out}")


def timed(calls, slices):
    """(seconds a pair of each repeat, all answers) by contender."""
    seconds = {name: [] for name in calls}
    answers = {name: [] for name in calls}
    for number, cases in enumerate(slices):
        # Nobody is always the one whose caches the one before it has emptied.
        first = number % len(calls)
        for name in [*list(calls)[first:], *list(calls)[:first]]:
            start = perf_counter()
            found = calls[name](cases)
            seconds[name].append((perf_counter() - start) / len(cases))
            answers[name] += found
        print(f"repeat {number + 1} of {len(slices)}: {len(cases):,} rows", flush=True)
    return seconds, answers


def same_texts(answers):
    """Of the contenders that write texts: how many are the very text of the plain loop."""
    return {
        name: sum(a == b for a, b in zip(answers[name], answers["plain_one"], strict=True))
        for name in ("plain_batched", "answer_one", "answer_batched")
    }


def shared_out(args, task):
    """(cases to warm up with, cases of each repeat, rows for boosting), none of them in two places."""
    from rows import load_rows

    rows = load_rows(existing_file(args.data, "make rows with src/synthesize.py"), task)
    cases = [row["input"] for row in rows[: args.rows + WARM_UP_ROWS]]
    rest = rows[args.rows + WARM_UP_ROWS :]
    fit_rows = load_rows(existing_file(args.fit), task) if args.fit else rest
    if len(cases) < args.rows + WARM_UP_ROWS:
        raise UserError(
            f"{args.data}: {len(rows):,} rows, but {args.rows} are to be answered and {WARM_UP_ROWS} warm up; give "
            "fewer --rows"
        )
    if task.verdict and len(fit_rows) < LEAST_FIT_ROWS:
        raise UserError(
            f"{args.fit or args.data}: {len(fit_rows):,} rows are left for boosting, at least {LEAST_FIT_ROWS} are "
            "needed; "
            "name others with --fit"
        )
    measured = cases[WARM_UP_ROWS:]
    return cases[:WARM_UP_ROWS], [measured[at :: args.repeats] for at in range(args.repeats)], fit_rows


class Contenders:
    """What is timed: each call takes cases and gives one answer a case."""

    def __init__(self, args, task, fit_rows):
        from constrained_decode import load_engine
        from language_model import model_folder

        config = model_folder.model_config(args, task)
        # Sampled texts could not be compared.
        config = dataclasses.replace(config, gen=dataclasses.replace(config.gen, temperature=0.0))
        # One engine each: an engine that has written the answers before guesses them all.
        self.engines = {
            "one": load_engine("hf").load(args.model_path, task, config, batch_size=1),
            "batched": load_engine("hf").load(args.model_path, task, config, batch_size=args.batch_size),
        }
        plain = Plain(args.model_path, config, self.engines["one"].end_ids)
        one = self.engines["one"]
        batched = self.engines["batched"]

        def asked(cases):
            return [task.messages(case) for case in cases]

        self.calls = {
            "plain_one": lambda cases: [plain(asked([case]))[0] for case in cases],
            "plain_batched": lambda cases: [
                text for at in range(0, len(cases), PLAIN_BATCH) for text in plain(asked(cases[at : at + PLAIN_BATCH]))
            ],
            "answer_one": lambda cases: [answer.text for case in cases for _, answer in one.answers(asked([case]))],
            "answer_batched": lambda cases: [
                answer.text for _, answer in sorted(batched.answers(asked(cases)), key=lambda found: found[0])
            ],
        }
        self.boosting = None
        if task.verdict:
            self.add_verdicts(task, fit_rows, asked)

    def add_verdicts(self, task, fit_rows, asked):
        """Verdicts alone, and gradient boosting, which gives nothing else."""
        from scoring.baselines import fit_boosting

        one = self.engines["one"]
        batched = self.engines["batched"]
        self.boosting = fit_boosting(fit_rows[len(fit_rows) // 10 :], fit_rows[: len(fit_rows) // 10], task, seed=0)
        boosting = self.boosting.predict
        self.calls |= {
            "verdict_one": lambda cases: [shares for case in cases for _, shares in one.verdicts(asked([case]))],
            "verdict_batched": lambda cases: list(batched.verdicts(asked(cases))),
            "boosting_one": lambda cases: [boosting([case]) for case in cases],
            "boosting_batched": lambda cases: list(boosting(cases)),
        }


class Plain:
    """What anybody would write: float32 weights, the chat template, `generate`, decode."""

    def __init__(self, model_path, config, end_ids):
        import torch

        from language_model import adapter, base_model, chat_template, hub

        folder = hub.local_or_hub(model_path)
        self.chat = chat_template.pinned_chat(hub.load_tokenizer(folder), config.chat)
        if hub.is_adapter(folder):
            self.model = adapter.folded(folder).float().eval()
        else:
            self.model = base_model.load_weights(folder, dtype=torch.float32).eval()
        self.options = {
            "max_new_tokens": config.gen.max_new_tokens,
            "do_sample": False,
            "eos_token_id": end_ids,
            "pad_token_id": self.chat.pad_id,
        }

    def __call__(self, conversations):
        import torch

        prompts = self.chat.prompts_ids(conversations)
        width = max(map(len, prompts))
        ids = torch.tensor([[self.chat.pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.no_grad():
            output = self.model.generate(input_ids=ids, attention_mask=mask, **self.options)
        return [self._text(row) for row in output[:, width:].tolist()]

    def _text(self, ids):
        end = next((at for at, token in enumerate(ids) if token in self.options["eos_token_id"]), len(ids))
        return self.chat.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)


def ratios(seconds):
    """How many times as fast as the plain loop, and, where it ran, how many times boosting's time, boosting asked in
    the same way: median, least and most.
    """
    found = {}
    for name, own in seconds.items():
        plain = zip(seconds["plain_one"], own, strict=True)
        found[name] = {"speed_of_plain_loop": spread([time / mine for time, mine in plain])}
        boosting = seconds.get(f"boosting_{name.split('_')[1]}")
        if boosting:
            times = [mine / time for mine, time in zip(own, boosting, strict=True)]
            found[name]["times_of_boosting"] = spread(times)
    return found


def spread(values):
    from statistics import median

    return {"median": round(median(values), 4), "least": round(min(values), 4), "most": round(max(values), 4)}


def speed_table(path):
    """Markdown of one report: ratios alone."""
    return table_of([_reports.read_report(path, "speed", table_of)])


def table_of(reports):
    (report,) = reports
    columns = {"speed_of_plain_loop": "times as fast as the plain loop"}
    if report["boosting"]:
        columns["times_of_boosting"] = "times the time of boosting"
    rows = [[title, *(shown(report["ratios"][name][key]) for key in columns)] for name, title in titles(report).items()]
    return f"{md_table(['', *columns.values()], rows, n_text=1)}\n\n{notes(report)}"


def titles(report):
    words = {
        "case": load_task(report["task"]).case,
        "plain": report["plain_batch"],
        "batch": report["engine"]["batch_size"],
    }
    return {name: title.format(**words) for name, title in TITLES.items() if name in report["ratios"]}


def shown(ratio):
    return f"{number(ratio['median'])} ({number(ratio['least'])} to {number(ratio['most'])})"


def number(value):
    """Three digits, no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def notes(report):
    engine = report["engine"]
    boosting = report["boosting"]
    n = report["rows"]
    title_of = titles(report)
    case = load_task(report["task"]).case
    same = "; ".join(f"{title_of[name]}: {count:,}" for name, count in report["same_text_as_plain_one"].items())
    likewise = "; boosting asked likewise, one at a time or all at once" if boosting else ""
    return "\n".join(
        [
            f"- Median of {report['repeats']} repeats in one run (least to most), {n:,} {case}s in all{likewise}.",
            f"- {report['threads']} threads on {report['hardware']['cpu_cores']} cores"
            f"{', boosting 1' if boosting else ''}; engine in {engine['precision']}, {engine['steps']}.",
            f"- Answers with the very text of the plain loop, of {n:,}: {md(same)}.",
            f"- {md(report['model']['title'])} ({_reports.weights(report['model'])}); rows "
            f"{md(report['data']['path'])} ({report['data']['sha256'][:12]}); "
            f"{'boosting: ' + md(boosting['method']) + '; ' if boosting else ''}{_reports.commit_and_time(report)}",
        ]
    )
