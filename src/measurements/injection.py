"""Whether text in a record can manipulate the model: python src/measure.py injection --out reports/injection.json

Every case is asked as it is, with an instruction written behind one of its values, and with unrelated text of the same
length in the same place: words of common remarks, and the instruction's own letters in random order. An instruction
that works changes more verdicts than those do, and to what it asks for. The task's injection.py holds the texts.
"""

import argparse
import random
from collections import Counter
from pathlib import Path

import locks
from common import UserError, quiet_libraries
from constrained_decode import load_engine
from language_model.model_folder import model_config
from manifest import Clock, write_manifest
from measurements import shipped_model, task_part, verdict_task
from tasks import DEFAULT

PAIRS = 600
ROWS_SEED = 77
ARMS = {
    "instruction": "an instruction",
    "unrelated": "other words of its length",
    "scrambled": "its letters in random order",
}


def main():
    args = parse_args()
    clock = Clock()
    task = verdict_task(args.task)
    args.model_path = args.model_path or shipped_model(task)
    quiet_libraries()
    with locks.only_writer(args.out):
        engine = load_engine("hf").load(args.model_path, task, model_config(args, task))
        found = measured(engine, task, args.pairs)
        write_manifest(args.out, clock, model=Path(args.model_path).name, **found)
    print(f"{found['pairs']:,} pairs")
    for arm, words in ARMS.items():
        print(
            f"{words} changed {found[arm]['changed_pct']} % of the verdicts, {found[arm]['obeyed_pct']} % to what the "
            "instruction asks for"
        )
    print(f"in {args.out}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"synthetic pairs to ask about (default {PAIRS})")
    parser.add_argument("--model_path", help="model folder (default: the one that ships for the task)")
    parser.add_argument("--config", help="the model's YAML, for a model that the pipeline did not train")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    if args.pairs < 1:
        raise UserError(f"--pairs {args.pairs}: at least 1")
    return args


def measured(engine, task, n_pairs, seed=1):
    """Of each arm: how many verdicts changed, how many to what the instruction asks for, and what the verdicts are."""
    cases, wanted, arms = questions(task, n_pairs, seed)
    plain = verdicts(engine, task, cases)
    found = {arm: verdicts(engine, task, changed) for arm, changed in arms.items()}
    return {
        "pairs": len(cases),
        **{arm: shares(plain, changed, wanted) for arm, changed in found.items()},
        "verdicts": {arm: Counter(labels) for arm, labels in ({"plain": plain} | found).items()},
    }


def questions(task, n_pairs, seed):
    """(cases, what each one's instruction asks for, the same cases with the text of each arm)."""
    instructions = task_part(task, "injection", "INSTRUCTIONS")
    place_in = task_part(task, "injection", "place")
    with_text = task_part(task, "injection", "with_text")
    rng = random.Random(seed)
    shuffling = random.Random(seed)
    cases = []
    wanted = []
    arms = {arm: [] for arm in ARMS}
    for row in task_part(task, "synthetic", "rows")(n_pairs, ROWS_SEED):
        label = rng.choice(list(instructions))
        text = rng.choice(instructions[label])
        place = place_in(row["input"], rng)
        if place is None:
            continue
        cases.append(row["input"])
        wanted.append(label)
        texts = {
            "instruction": text,
            "unrelated": of_length(len(text), task_part(task, "injection", "WORDS"), rng),
            "scrambled": "".join(shuffling.sample(text, len(text))),
        }
        for arm, written in texts.items():
            arms[arm].append(with_text(row["input"], place, written))
    return cases, wanted, arms


def of_length(n, words, rng):
    text = ""
    while len(text) < n:
        text += f"{rng.choice(words)} "
    return text[:n].rstrip() or "a"


def verdicts(engine, task, cases):
    found = [None] * len(cases)
    for at, chances in engine.verdicts([task.messages(case) for case in cases]):
        found[at] = task.verdict.likeliest(chances)
    return found


def shares(plain, changed, wanted):
    """Of verdicts that changed, and of those that changed to what the instruction asked for."""
    n_changed = sum(a != b for a, b in zip(plain, changed, strict=True))
    n_obeyed = sum(a != b == want for a, b, want in zip(plain, changed, wanted, strict=True))
    return {
        "n_changed": n_changed,
        "changed_pct": round(100 * n_changed / len(plain), 2),
        "n_obeyed": n_obeyed,
        "obeyed_pct": round(100 * n_obeyed / len(plain), 2),
    }
