"""Let a model answer labelled rows.

    python src/predict.py --model_path outputs/phi4mini-merged --out reports/phi4mini_predictions.jsonl

The one place that generates for evaluation. Every raw answer is kept, with the verdict's probabilities and its time.
"""

import argparse
from pathlib import Path

from common import run
from scoring.predictions import add_arguments, predict_unless_done
from tasks import load_task


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, model_required=True)
    parser.add_argument("--out", required=True, help="predictions JSONL to write")
    args = parser.parse_args()
    predict_unless_done(args, load_task(args.task), Path(args.out))


if __name__ == "__main__":
    run(main)
