"""What users get for odd inputs: python src/measure.py odd_requests --task qod --model_path
outputs/qod/smollm2_135m-merged --out reports/qod/odd_requests.json

Inputs that are empty, long, in other languages, full of instructions or code are asked several times, as src/ask.py
asks, held to the answer's schema and not. Each outcome is an answer, a refusal of the task's own with reasons, or an
error; what goes out must have no unknown field. The task's measuring.py holds the inputs.
"""

import argparse
from collections import Counter
from pathlib import Path

import locks
from common import UserError, WorkFailed, counted, quiet_libraries
from constrained_decode import load_engine
from language_model.model_folder import model_config, model_identity
from manifest import Clock, write_manifest
from measurements import shipped_model, task_part
from scoring import asking
from tasks import DEFAULT, load_task

SAMPLES = 5
WAYS = {"unconstrained": False, "constrained": True}
# What a user gets, in words.
OUTCOMES = {
    "answer": "an answer",
    "refusal": "what is missing or wrong in the request",
    "failed": "an error: the answer fails the checks",
    "none": "an error: no answer in the text",
    "too_long": "an error: too long for the model",
}
UNKNOWN = ("unknown_fields_out", "unknown_fields_raw")


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    args.model_path = args.model_path or shipped_model(task)
    config = model_config(args, task)
    if args.samples > 1 and not config.gen.temperature:
        raise UserError(f"--samples {args.samples}: at temperature 0 every answer to an input is the same; take 1")
    cases = task_part(task, "measuring", "odd_requests")()
    unreadable = refused_at_once(task)
    quiet_libraries()
    with locks.only_writer(args.out):
        ways = {}
        for way, constrained in WAYS.items():
            engine = load_engine("hf").load(args.model_path, task, config, constrained=constrained)
            ways[way] = measured(engine, task, cases, args.samples)
        write_manifest(
            args.out,
            clock,
            task=task.name,
            title=config.name,
            model=model_identity(args.model_path),
            gen=vars(config.gen),
            requests=len(cases),
            samples=args.samples,
            unreadable=unreadable,
            ways=ways,
        )
    for way, found in ways.items():
        print(f"{way}, {counted(found['all']['asked'], 'answer')}: {in_words(found['all'])}")
    print(f"in {args.out}")
    stop_if_unchecked(ways, unreadable)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"answers to each input (default {SAMPLES})")
    parser.add_argument("--model_path", help="model folder (default: the one that ships for the task)")
    parser.add_argument("--config", help="the model's YAML, for a model that the pipeline did not train")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    if args.samples < 1:
        raise UserError(f"--samples {args.samples}: at least 1")
    return args


def refused_at_once(task):
    """What is said of each input that is none, before any model is asked; None where it would be asked about."""
    inputs = task_part(task, "measuring", "UNREADABLE")
    return {name: "; ".join(task.check_case(case)) or None for name, case in inputs.items()}


def measured(engine, task, cases, n_samples):
    """Counts of outcomes and unknown fields, over all inputs and by what is odd about them."""
    # All copies in one call: a batch draws by its place in the call, so a second call would draw the same again.
    repeated = [(family, task.messages(case)) for _ in range(n_samples) for family, case in cases]
    answers = asking.answers(engine, [messages for _, messages in repeated], unit=f"{task.case}s")
    found = {"all": none_yet()}
    for (family, _), answer in zip(repeated, answers, strict=True):
        counts = counts_of(task, answer)
        for name in ("all", family):
            found.setdefault(name, none_yet()).update(counts)
    return found


def none_yet():
    return Counter(dict.fromkeys(("asked", *OUTCOMES, *UNKNOWN), 0))


def counts_of(task, answer):
    """What one answer adds: its outcome, and unknown fields in what goes out and in what was written."""
    if isinstance(answer, asking.Refusal):
        return {"asked": 1, "too_long": 1}
    has_unknown_fields = task_part(task, "measuring", "has_unknown_fields")
    outcome = task.outcome(answer.text)
    goes_out = outcome.answer is not None and has_unknown_fields(outcome.answer)
    return {
        "asked": 1,
        kind_of(outcome): 1,
        "unknown_fields_out": int(goes_out),
        "unknown_fields_raw": int(has_unknown_fields(answer.text)),
    }


def kind_of(outcome):
    if outcome.answer is None:
        return "failed" if outcome.reasons else "none"
    return "refusal" if outcome.reasons else "answer"


def in_words(counts):
    kinds = [f"{counts[name]:,} {words}" for name, words in OUTCOMES.items() if counts[name]]
    fields = f"unknown fields in {counts['unknown_fields_out']:,} that go out, {counts['unknown_fields_raw']:,} written"
    return "; ".join([*kinds, fields])


def stop_if_unchecked(ways, unreadable):
    """A WorkFailed where an unknown field goes out, or an input that is none would be asked about."""
    out = sum(found["all"]["unknown_fields_out"] for found in ways.values())
    asked = [name for name, words in unreadable.items() if words is None]
    if out or asked:
        raise WorkFailed(
            f"{out:,} answers that go out have unknown fields; a model would be asked about: "
            f"{', '.join(asked) or 'nothing unreadable'}. The task's checks let this pass"
        )
