"""Ask about pairs without labels: python src/ask.py '{"name": "Ann Lee", "phone": "5550101"}' '{"full_name": "A. Lee", "phone": "555-0101"}'

Or many: python src/ask.py --pairs pairs.jsonl --out answers.jsonl, one {"record1": {...}, "record2": {...}} a line; an "id" beside the
records is given back with the answer.
"""

import argparse
import json
import sys

import jsonschema

from common import ROOT, UserError, existing_file, parse_json, progress, quiet_libraries, read_lines, run, written_whole
from constrained_decode import load_engine
from predict import model_config, parsed_answer
from tasks import DEFAULT, load_task

SHIPPED = "models/steward-mini"


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
    parser.add_argument("--verdicts", action="store_true", help="verdict and probabilities alone, from one pass a pair: several times as fast")
    parser.add_argument("--out", help="JSON Lines file to write (default: standard output)")
    parser.add_argument("--model_path", default=str(ROOT / SHIPPED), help=f"model folder (default {SHIPPED}); a trained one is in outputs/<model>-merged")
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
    case = {name: parsed(name, text) for name, text in zip(("record1", "record2"), args.records, strict=True)}
    problems = task.module("data").check_case(case)
    if problems:
        raise UserError("; ".join(problems))
    return [({}, case)]


def pairs_from_file(pairs, task):
    """The pairs of a file or of standard input; every wrong line is named."""
    lines = enumerate(sys.stdin, 1) if pairs == "-" else read_lines(existing_file(pairs))
    found, problems = [], []
    for number, line in lines:
        where = f"{pairs}:{number}"
        if isinstance(line, Exception):
            problems.append(f"{where}: not UTF-8 text")
        elif line.strip():
            try:
                row = parsed(where, line)
            except UserError as error:
                problems.append(str(error))
                continue
            named = {"id": row.pop("id")} if isinstance(row, dict) and "id" in row else {}
            case = row["input"] if isinstance(row, dict) and "input" in row else row
            found.append((named, case))
            problems += [f"{where}: {problem}" for problem in task.module("data").check_case(case)]
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        what = "1 line is not a pair" if len(problems) == 1 else f"{len(problems)} lines are not pairs"
        raise UserError(f"{what} of records:\n  " + "\n  ".join(problems[:20]) + more)
    if not found:
        raise UserError(f"{pairs}: no pair in it; one {{\"record1\": {{...}}, \"record2\": {{...}}}} a line")
    return found


def parsed(where, text):
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error


def answered(engine, task, pairs):
    """One answer a pair, in order, with the verdicts' probabilities; what is not valid JSON says so instead of guessing."""
    schema, found = jsonschema.Draft202012Validator(task.answer_schema), [None] * len(pairs)
    with progress(len(pairs), "pairs", "answers") as bar:
        for at, answer in engine.answers([task.messages(case) for _, case in pairs]):
            told = parsed_answer(answer.text, schema) or {"error": "the model's answer is not valid JSON", "raw": answer.text}
            found[at] = pairs[at][0] | told | shown(answer.probabilities)
            bar.update(1)
    return found


def judged(engine, task, pairs):
    """The likeliest verdict of each pair, in order; of equally likely ones that for a person."""
    found = [None] * len(pairs)
    with progress(len(pairs), "pairs", "verdicts") as bar:
        for at, shares in engine.verdicts([task.messages(case) for _, case in pairs]):
            verdict = max(shares, key=lambda label: (shares[label], label == task.review_label))
            found[at] = pairs[at][0] | {task.label_key: verdict} | shown(shares)
            bar.update(1)
    return found


def shown(probabilities):
    """As a part of the answer; nothing where the engine tells none."""
    return {"probabilities": {label: round(share, 4) for label, share in probabilities.items()}} if probabilities else {}


if __name__ == "__main__":
    run(main)
