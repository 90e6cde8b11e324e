"""Ask about cases without labels.

    python src/ask.py '{"name": "Ann Lee", "phone": "5550101"}' '{"full_name": "A. Lee", "phone": "555-0101"}'
    python src/ask.py --pairs pairs.jsonl --out answers.jsonl

Another task's case is one word of JSON. A file holds one case a line; an "id" beside its keys is given back with the
answer.
"""

import argparse
import json

from common import ROOT, UserError, progress, quiet_libraries, run, written_whole
from constrained_decode import load_engine
from language_model.model_folder import model_config
from rows import cases_from_file
from tasks import DEFAULT, load_task


def main():
    args = parse_args()
    task = load_task(args.task)
    cases = cases_of(args, task)
    quiet_libraries()
    engine = load_engine(args.backend).load(args.model_path, task, model_config(args, task))
    answers = (verdicts if args.verdicts else answered)(engine, task, cases)
    if args.out:
        with written_whole(args.out) as file:
            file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        print(f"{len(answers):,} answers in {args.out}")
    else:
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False))


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


def answered(engine, task, cases):
    """One answer a case, in order; what is no valid answer says so instead of guessing."""
    found = [None] * len(cases)
    with progress(len(cases), f"{task.case}s", "answers") as bar:
        for at, answer in engine.answers([task.messages(case) for _, case in cases]):
            parsed = task.parsed(answer.text)
            if parsed is None:
                whole = {"error": "the model's answer is not valid", "raw": answer.text}
            else:
                whole = parsed if isinstance(parsed, dict) else {"answer": parsed}
            found[at] = cases[at][0] | whole | rounded(answer.probabilities)
            bar.update(1)
    return found


def verdicts(engine, task, cases):
    """The likeliest verdict of each case, in order."""
    found = [None] * len(cases)
    with progress(len(cases), f"{task.case}s", "verdicts") as bar:
        for at, shares in engine.verdicts([task.messages(case) for _, case in cases]):
            found[at] = cases[at][0] | {task.verdict.key: task.verdict.likeliest(shares)} | rounded(shares)
            bar.update(1)
    return found


def rounded(probabilities):
    """As a part of the answer; nothing where there are none."""
    if not probabilities:
        return {}
    return {"probabilities": {label: round(share, 4) for label, share in probabilities.items()}}


if __name__ == "__main__":
    run(main)
