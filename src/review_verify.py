"""Check that what stewards decided is as it was written: python src/review_verify.py --decisions
reviews/decisions.jsonl

The chain shows a changed, lost, moved or added line, and the mark beside the file a cut end. Where somebody changed the
mark as well, or wrote the file anew from its beginning, --last_hash shows it: a hash that an earlier check printed and
that was kept elsewhere.
"""

import argparse
from pathlib import Path

from common import WorkFailed, counted, existing_file, run
from service.review import chain, decisions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--decisions", default="reviews/decisions.jsonl", help="the file to check (default reviews/decisions.jsonl)"
    )
    parser.add_argument("--last_hash", help="hash that must be in the file, from an earlier check")
    args = parser.parse_args()
    path = Path(args.decisions)
    # Of a file that is gone the mark beside it says what it held.
    if not chain.mark_path(path).is_file():
        existing_file(path, "the review page writes it; make serve starts it")
    found = chain.problems(path)
    if found:
        more = f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        raise WorkFailed(f"{path} is not what was written:\n  " + "\n  ".join(found[:20]) + more)
    entries = list(chain.read(path))
    if args.last_hash and args.last_hash not in {entry["hash"] for entry in entries}:
        raise WorkFailed(
            f"{path}: no decision has the hash {args.last_hash[:12]}...: lines were cut off at the end, or all were "
            "written anew"
        )
    print(
        f"{path}: {counted(len(entries), 'decision')}, each follows the one before; "
        f"{counted(len(decisions.standing(entries)), 'pair')} decided"
    )
    if entries:
        print(f"the last one's hash, to keep elsewhere: {entries[-1]['hash']}")


if __name__ == "__main__":
    run(main)
