"""Make the comparison from what was measured: python src/make_report.py --reports reports

Reads every <model>_metrics.json with the predictions that it names and every <run>_latency.manifest.json of the
benchmark; writes metrics.csv, latency.csv, throughput.csv, model_comparison.md and index.html. In model_comparison.md
only the part between the two marker comments is replaced; what people write around it stays.
"""

import argparse
from pathlib import Path

import locks
from common import ROOT, UserError, run, sha256_file, shown_path, written_whole
from manifest import Clock, write_manifest
from report import comparison, latency
from report.models import find_models
from report.page import page
from tasks import DEFAULT, load_task

MOST_WRONG = 500


def main():
    args = parse_args()
    with locks.only_writer(args.reports / "report"):
        make(args)


def make(args):
    clock = Clock()
    task = load_task(args.task)
    models = find_models(args.reports, args.configs, task)
    runs = latency.find_runs(args.reports, task)
    report = comparison.Comparison(models, runs, task, args.reports)
    in_words = args.reports / "model_comparison.md"
    texts = {
        args.reports / "metrics.csv": comparison.metrics_csv(models),
        args.reports / "latency.csv": latency.csv_text(runs, latency.LATENCY_CSV),
        args.reports / "throughput.csv": latency.csv_text(runs, latency.THROUGHPUT_CSV),
        in_words: comparison.in_file(in_words, report.markdown(), task),
        args.reports / "index.html": page(report, MOST_WRONG),
    }
    # Absent while the files are replaced, so that its presence means that they belong together.
    (args.reports / "manifest.json").unlink(missing_ok=True)
    with written_whole(*texts) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write(text)
    write_manifest(
        args.reports / "manifest.json",
        clock,
        task=task.name,
        inputs={shown_path(path): sha256_file(path) for measured in [*models, *runs] for path in measured.files},
    )
    print_summary(report, texts)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reports",
        type=Path,
        help="folder with <model>_metrics.json and <run>_latency.csv, written to as well (default reports)",
    )
    parser.add_argument(
        "--configs", type=Path, default=ROOT / "configs", help="folder with one YAML a model (default configs)"
    )
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    args.reports = args.reports or load_task(args.task).under("reports")
    for folder in (args.reports, args.configs):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, not a folder; name the folder")
    if not args.configs.is_dir():
        raise UserError(f"{args.configs}: no such folder; --configs names the folder with one YAML a model")
    return args


def print_summary(report, texts):
    for title, sentence in report.warnings():
        print(f"note: {title}: {sentence}")
    measured = f"{len(report.measured):,} of {len(report.models):,} rows measured, benchmark runs: {len(report.runs):,}"
    print(f"{measured}; wrote {', '.join(shown_path(path) for path in texts)}")


if __name__ == "__main__":
    run(main)
