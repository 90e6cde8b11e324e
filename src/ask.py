"""Ask about cases without labels.

    python src/ask.py '{"name": "Ann Lee", "phone": "5550101"}' '{"full_name": "A. Lee", "phone": "555-0101"}'
    python src/ask.py --pairs pairs.jsonl --out answers.jsonl

Another task's case is one word of JSON. A file holds one case a line; an "id" beside its keys is given back with the
answer. With --out, an interrupted run goes on where it was. A case that cannot be answered has an `error` in place of
its answer, and the run ends with exit code 1.
"""

import argparse
import contextlib
import json
import sys

import locks
from common import (
    ROOT,
    UserError,
    WorkFailed,
    existing_file,
    quiet_libraries,
    run,
    sha256_file,
    sha256_text,
    to_json,
    written_whole,
)
from constrained_decode import load_engine
from language_model.model_folder import model_config, model_identity
from manifest import fingerprint
from rows import cases_from_file
from scoring import asking
from tasks import DEFAULT, load_task
from tasks import facts as task_facts

MANY = 32  # cases that take long enough to be stopped


class Unanswered(dict):
    """A line that says why there is no answer; an answer of the task's own may have a key `error` too."""


def main():
    args = parse_args()
    task = load_task(args.task)
    cases = cases_of(args, task)
    quiet_libraries()
    with locks.only_writer(args.out) if args.out else contextlib.nullcontext():
        n_failed = answer(args, task, cases)
    if n_failed:
        raise WorkFailed(
            f"{n_failed:,} of {len(cases):,} {task.case}s could not be answered; each has an error in its place"
        )


def answer(args, task, cases):
    """Write an answer a case; how many have none."""
    conversations = [task.messages(case) for _, case in cases]
    with asking.journal_of(args.out, args.out and name_of_the_work(args, task, conversations)) as journal:
        if journal:
            journal.report()
        elif len(cases) > MANY:
            print("the answers come at the end; --out <file> keeps each as it comes", file=sys.stderr, flush=True)
        engine = load_engine(args.backend).load(args.model_path, task, model_config(args, task))
        ask = verdicts if args.verdicts else answered
        found = ask(engine, task, conversations, journal)
        lines = [
            json.dumps(named | one, ensure_ascii=False) + "\n" for (named, _), one in zip(cases, found, strict=True)
        ]
        if args.out:
            with written_whole(args.out) as file:
                file.writelines(lines)
    if args.out:
        print(f"{len(lines):,} answers in {args.out}")
    else:
        sys.stdout.writelines(lines)
    return sum(isinstance(one, Unanswered) for one in found)


def name_of_the_work(args, task, conversations):
    """The name of what the answers depend on: an interrupted run with the same name goes on."""
    engine = load_engine(args.backend)
    facts = {
        "prompts": sha256_text(to_json(conversations)),
        "task": task_facts(task),
        "model": model_identity(args.model_path),
        "engine": engine.identity(args.model_path),
        "config": args.config and sha256_file(existing_file(args.config)),
        "options": [args.backend, args.verdicts],
    }
    return fingerprint(facts, __file__, engine.__file__, task.folder / "data.py")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="JSON", help="one case: two records, or what the task's input is")
    parser.add_argument("--pairs", "--cases", help="JSON Lines file with one case a line; - reads standard input")
    parser.add_argument(
        "--verdicts",
        action="store_true",
        help="verdict and probabilities alone, from one pass a case: several times as fast",
    )
    parser.add_argument("--out", help="JSON Lines file to write (default: standard output)")
    parser.add_argument("--model_path", help="model folder (default: the one that ships for the task)")
    parser.add_argument("--backend", default="hf", help="engine (default hf)")
    parser.add_argument("--config", help="the model's YAML, for a model that the pipeline did not train")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return checked(parser.parse_args())


def checked(args):
    task = load_task(args.task)
    if bool(args.pairs) == bool(args.words):
        raise UserError(f"give one {task.case} as JSON, or --pairs with a file of {task.case}s")
    if args.verdicts and not task.verdict:
        raise UserError(f"--verdicts: the task {task.name} has no verdict; leave it out for whole answers")
    if not args.model_path and not task.shipped:
        raise UserError(
            f"no model ships for the task {task.name}; train one with make train-<model> TASK={task.name}, then "
            f"make ask-<model> TASK={task.name} (--model_path {task.under('outputs')}/<model>-merged)"
        )
    if load_engine(args.backend).NEEDS_ENDPOINT:
        raise UserError(
            f"--backend {args.backend}: asks a server that runs already; src/predict.py --endpoint does that"
        )
    args.model_path = args.model_path or str(ROOT / task.shipped)
    return args


def cases_of(args, task):
    """(id or nothing, case) of each case asked about."""
    if args.pairs:
        return cases_from_file(args.pairs, task)
    try:
        case = task.case_of_words(args.words)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a {task.case} ({error})") from error
    if problems := task.check_case(case):
        raise UserError("; ".join(problems))
    return [({}, case)]


def answered(engine, task, conversations, journal=None):
    """One answer a case, in order; what is no valid answer says so instead of guessing."""
    found = []
    for answer in asking.answers(engine, conversations, journal, f"{task.case}s"):
        if isinstance(answer, asking.Refusal):
            found.append(Unanswered(error=answer.words))
            continue
        found.append(line_of(task.outcome(answer.text), answer))
    return found


def line_of(outcome, answer):
    """An outcome as a line of the output; a text that is no answer at all is shown as it is."""
    shares = rounded(answer.probabilities)
    if outcome.answer is None and outcome.reasons:
        return Unanswered({"error": "; ".join(outcome.reasons)} | shares)
    if outcome.answer is None:
        return Unanswered({"error": "the model's answer is not valid", "raw": answer.text} | shares)
    return (outcome.answer if isinstance(outcome.answer, dict) else {"answer": outcome.answer}) | shares


def verdicts(engine, task, conversations, journal=None):
    """The likeliest verdict of each case, in order."""
    return [
        Unanswered(error=shares.words)
        if isinstance(shares, asking.Refusal)
        else {task.verdict.key: task.verdict.likeliest(shares)} | rounded(shares)
        for shares in asking.verdicts(engine, conversations, journal, f"{task.case}s")
    ]


def rounded(probabilities):
    """As a part of the answer; nothing where there are none."""
    if not probabilities:
        return {}
    return {"probabilities": {label: round(share, 4) for label, share in probabilities.items()}}


if __name__ == "__main__":
    run(main)
