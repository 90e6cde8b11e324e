"""Check that nobody changed what stewards decided: python src/review_verify.py --decisions reviews/decisions.jsonl"""

import argparse

import decisions
from common import WorkFailed, existing_file, run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", default="reviews/decisions.jsonl", help="the file to check (default reviews/decisions.jsonl)")
    path = existing_file(parser.parse_args().decisions, "the review page writes it; make serve starts it")
    found = decisions.problems(path)
    if found:
        more = f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        raise WorkFailed(f"{path} is not what was written:\n  " + "\n  ".join(found[:20]) + more)
    entries = list(decisions.read(path))
    print(f"{path}: {len(entries):,} decisions, each follows the one before; {len(decisions.standing(entries)):,} pairs are decided")
    if entries:
        print(f"the last one's hash, to keep elsewhere: {entries[-1]['hash']}")


if __name__ == "__main__":
    run(main)
