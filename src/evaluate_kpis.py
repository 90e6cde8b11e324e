"""Score a model's answers: python src/evaluate_kpis.py --model_path outputs/phi4mini-merged --out
reports/phi4mini_metrics.json

Predicts first when the predictions beside --out are missing or were made from something else, then scores them.
"""

import argparse
import contextlib

import locks
from common import UserError, read_json, run
from manifest import Clock, write_manifest
from scoring import kpis
from tasks import load_task


def main():
    from scoring import predictions

    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    path = args.predictions or predictions.path_beside(args.out)
    places = {predictions.place_of(args.out), predictions.place_of(path)}
    with contextlib.ExitStack() as held:
        for place in sorted(places):
            held.enter_context(locks.only_writer(place))
        if args.model_path:
            predictions.predict_unless_done(args, task, path)
        facts = read_json(predictions.manifest_path(path))
        metrics = kpis.score(kpis.read_predictions(path, task), task)
        write_manifest(args.out, clock, **kpis.identity(facts, path), **metrics)
    kpis.print_summary(args.out, metrics["kpis"], task)
    if words := predictions.failure_words(path):
        print(f"warning: {words}")


def parse_args():
    from scoring import predictions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    predictions.add_arguments(parser, model_required=False)
    parser.add_argument("--out", required=True, help="metrics JSON to write")
    parser.add_argument(
        "--predictions", help="score this file (default: <out without _metrics>_predictions.jsonl beside --out)"
    )
    args = parser.parse_args()
    if not args.model_path and not args.predictions:
        raise UserError("give --model_path to predict and score, or --predictions to score what is there")
    if args.set and not args.model_path:
        raise UserError("--set: the predictions are there already; name the model with --model_path to answer anew")
    return args


if __name__ == "__main__":
    run(main)
