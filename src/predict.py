"""Let a model answer labelled rows.

    python src/predict.py --model_path outputs/phi4mini-merged --out reports/phi4mini_predictions.jsonl

The one place that generates for evaluation. Every raw answer is kept, with the verdict's probabilities and its time. An
interrupted run goes on where it was. A row that cannot be answered has an `error`, and the run ends with exit code 1;
with --samples only where asking again may help.
--samples asks for several answers to each row, as src/build_preferences.py wants them.
"""

import argparse
from pathlib import Path

import locks
from common import WorkFailed, run
from scoring.predictions import add_arguments, failure_words, n_to_ask_again, place_of, predict_unless_done
from tasks import load_task


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, model_required=True)
    parser.add_argument("--out", required=True, help="predictions JSONL to write")
    parser.add_argument(
        "--samples",
        type=int,
        default=1,
        help="answers to each row, drawn anew, each on its own line with its number as `sample` (default 1)",
    )
    args = parser.parse_args()
    out = Path(args.out)
    with locks.only_writer(place_of(out)):
        predict_unless_done(args, load_task(args.task), out, args.samples)
    if words := failure_words(out):
        # Many answers to a row are material: a row that is too long for the model gives none, whoever asks again.
        if args.samples == 1 or n_to_ask_again(out):
            raise WorkFailed(words)
        print(f"warning: {words}")


if __name__ == "__main__":
    run(main)
