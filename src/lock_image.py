"""Write the lock file of the Docker image from pip's report: python src/lock_image.py --report r.json --out f.lock

    pip install --dry-run --ignore-installed --only-binary=:all: --report report.json -r requirements-gpu.txt

makes the report, in the image's own base. The lock names every package, the indirect ones too, with the hash of the one
file that pip would install, so that a build next year installs the same.
"""

import argparse
from pathlib import Path

from common import UserError, counted, read_json, run, write_text

LINES_APART = " \\\n    "


def main():
    args = parse_args()
    report = read_json(args.report)
    lines = locked(report)
    machine = report["environment"]
    head = (
        f"# Written by src/lock_image.py from what pip resolved for Python {machine['python_version']} on "
        f"{machine['sys_platform']} {machine['platform_machine']}.\n"
    )
    write_text(args.out, head + "\n".join(lines) + "\n")
    print(f"{counted(len(lines), 'package')} in {args.out}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, required=True, help="what pip install --report wrote")
    parser.add_argument("--out", type=Path, required=True, help="lock file to write")
    return parser.parse_args()


def locked(report):
    """A line a package, with the hash of its file."""
    found = []
    for package in report.get("install") or []:
        name = package["metadata"]["name"].lower()
        file = package["download_info"]
        sha256 = file.get("archive_info", {}).get("hashes", {}).get("sha256")
        if not sha256:
            raise UserError(f"{name}: {file.get('url')} has no SHA-256; take it from an index that names one")
        found.append(f"{name}=={package['metadata']['version']}{LINES_APART}--hash=sha256:{sha256}")
    if not found:
        raise UserError("the report installs nothing; make it with --ignore-installed")
    return sorted(found)


if __name__ == "__main__":
    run(main)
