"""Ask about pairs without labels: python src/ask.py '{"name": "Ann Lee", "phone": "5550101"}' '{"full_name": "A. Lee",
"phone": "555-0101"}'

Or many: python src/ask.py --pairs pairs.jsonl --out answers.jsonl, one {"record1": {...}, "record2": {...}} a line; an
"id" beside the records is given back with the answer.
"""

import argparse
import json

import jsonschema

from common import ROOT, UserError, parsed_answer, progress, quiet_libraries, run, written_whole
from constrained_decode import load_engine
from language_model.model_folder import SHIPPED, model_config
from rows import pairs_from_file, parsed_value
from tasks import DEFAULT, load_task


def main():
    args = parse_args()
    task = load_task(args.task)
    pairs = pairs_of(args, task)
    quiet_libraries()
    engine = load_engine(args.backend).load(args.model_path, task, model_config(args))
    answers = (judged if args.verdicts else answered)(engine, task, pairs)
    if args.out:
        with written_whole(args.out) as file:
            file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        print(f"{len(answers):,} answers in {args.out}")
    else:
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*", help="two records as JSON")
    parser.add_argument("--pairs", help="JSON Lines file with one pair a line; - reads standard input")
    parser.add_argument(
        "--verdicts",
        action="store_true",
        help="verdict and probabilities alone, from one pass a pair: several times as fast",
    )
    parser.add_argument("--out", help="JSON Lines file to write (default: standard output)")
    parser.add_argument(
        "--model_path",
        default=str(ROOT / SHIPPED),
        help=f"model folder (default {SHIPPED}); a trained one is in outputs/<model>-merged",
    )
    parser.add_argument("--backend", default="hf", help="engine (default hf)")
    parser.add_argument("--config", help="the model's YAML, for a model that the pipeline did not train")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    if bool(args.pairs) == bool(args.records) or args.records and len(args.records) != 2:
        raise UserError("give two records as JSON, or --pairs with a file of pairs")
    return args


def pairs_of(args, task):
    """(id or nothing, case) of each pair asked about."""
    if args.pairs:
        return pairs_from_file(args.pairs, task)
    case = {name: parsed_value(name, text) for name, text in zip(("record1", "record2"), args.records, strict=True)}
    problems = task.module("data").check_case(case)
    if problems:
        raise UserError("; ".join(problems))
    return [({}, case)]


def answered(engine, task, pairs):
    """One answer a pair, in order, with the verdicts' probabilities; what is not valid JSON says so instead of
    guessing.
    """
    schema = jsonschema.Draft202012Validator(task.answer_schema)
    found = [None] * len(pairs)
    with progress(len(pairs), "pairs", "answers") as bar:
        for at, answer in engine.answers([task.messages(case) for _, case in pairs]):
            told = parsed_answer(answer.text, schema) or {
                "error": "the model's answer is not valid JSON",
                "raw": answer.text,
            }
            found[at] = pairs[at][0] | told | shown(answer.probabilities)
            bar.update(1)
    return found


def judged(engine, task, pairs):
    """The likeliest verdict of each pair, in order; of equally likely ones that for a person."""
    found = [None] * len(pairs)
    with progress(len(pairs), "pairs", "verdicts") as bar:
        for at, shares in engine.verdicts([task.messages(case) for _, case in pairs]):
            verdict = max(shares, key=lambda label: (shares[label], label == task.verdict.review))
            found[at] = pairs[at][0] | {task.verdict.key: verdict} | shown(shares)
            bar.update(1)
    return found


def shown(probabilities):
    """As a part of the answer; nothing where the engine tells none."""
    return (
        {"probabilities": {label: round(share, 4) for label, share in probabilities.items()}} if probabilities else {}
    )


if __name__ == "__main__":
    run(main)
