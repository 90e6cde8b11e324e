"""Whether the official API takes what the strict check lets through: python src/measure.py judge --task qod
--predictions reports/qod/x_predictions.jsonl --spec <folder of the official release> --out reports/qod/judge.json

A mock server is made from the official OpenAPI file and holds every body against its schema. First it gets bodies with
a known fault, so that it shows whether it can say no. Then it gets every answer of the predictions that is a call and
passes the task's own check. Where the official scenarios lie beside the file, each that ends with a 4xx must have such
a body, or a reason why no body can show it. The task's measuring.py says what is posted.
"""

import argparse
from collections import Counter
from pathlib import Path

import locks
from common import UserError, WorkFailed, counted, existing_file, read_jsonl, sha256_file, shown_path
from config import read_yaml
from manifest import Clock, write_manifest
from measurements import task_part
from measurements._mock_server import PRISM, mock_server
from tasks import DEFAULT, load_task

MOST_SHOWN = 20  # rejected answers of a file that the report names


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    path, api = specification(args.spec, task)
    files = {name: bodies_of(name, task) for name in args.predictions}
    with locks.only_writer(args.out):
        scenarios = compared_scenarios(path.parent, task)
        with mock_server(api) as server:
            own_test = tested(server, task)
            found = [judged(server, task, name, bodies) for name, bodies in files.items()]
        write_manifest(
            args.out,
            clock,
            task=task.name,
            server=PRISM,
            api={"title": api["info"]["title"], "version": api["info"]["version"], **named(path)},
            own_test=own_test,
            scenarios=scenarios,
            predictions=found,
        )
    print_findings(own_test, scenarios, found)
    print(f"in {args.out}")
    stop_if_untrustworthy(own_test, scenarios)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", nargs="+", required=True, help="files that src/predict.py wrote")
    parser.add_argument("--spec", type=Path, required=True, help="OpenAPI file of the official API, or its folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return parser.parse_args()


def specification(given, task):
    """(path, content) of the official OpenAPI file, which must have the operation that answers are posted to."""
    name = task_part(task, "measuring", "SPECIFICATION")
    path = existing_file(given / name if given.is_dir() else given, f"--spec names {name} or the folder that holds it")
    post_to = task_part(task, "measuring", "POST_TO")
    api = read_yaml(path)
    try:
        _ = api["info"]["title"], api["info"]["version"], api["paths"][post_to]["post"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no OpenAPI file with POST {post_to} ({error}); take {name}") from error
    return path, api


def named(path):
    return {"file": path.name, "sha256": sha256_file(path)}


def bodies_of(name, task):
    """(id, body or None) of each answer in a file of predictions."""
    body_of = task_part(task, "measuring", "body_of")
    rows = read_jsonl(name)
    if not rows or not all(isinstance(row, dict) and isinstance(row.get("raw"), str) and "id" in row for row in rows):
        raise UserError(f"{name}: not a file of src/predict.py, whose lines have id and raw; make it with that step")
    return [(row["id"], body_of(row["raw"])) for row in rows]


def tested(server, task):
    """What the server says to bodies with a known fault: those that break its schema, and those that it cannot see."""
    bodies = task_part(task, "measuring", "bad_bodies")()
    replies = server.replies(task_part(task, "measuring", "POST_TO"), [one["body"] for one in bodies])
    body_of = task_part(task, "measuring", "body_of")
    seen = [(one, reply) for one, reply in zip(bodies, replies, strict=True) if one["breaks"] == "schema"]
    return {
        "bodies": len(seen),
        "rejected": sum(not reply.is_accepted for _, reply in seen),
        "accepted": [one["fault"] for one, reply in seen if reply.is_accepted],
        "faults": {one["fault"]: [reply.status, reply.why] for one, reply in seen},
        # The schema allows them, the task's own check must not.
        "beyond_the_schema": len(bodies) - len(seen),
        "passed_the_strict_check": [one["fault"] for one in bodies if body_of(one["body"]) is not None],
    }


def judged(server, task, name, bodies):
    """How many of a file's calls the server accepts."""
    posted = [(row, body) for row, body in bodies if body is not None]
    replies = server.replies(task_part(task, "measuring", "POST_TO"), [body for _, body in posted])
    rejected = [(row, reply) for (row, _), reply in zip(posted, replies, strict=True) if not reply.is_accepted]
    return {
        "path": shown_path(name),
        "sha256": sha256_file(name),
        "answers": len(bodies),
        "posted": len(posted),
        "accepted": len(posted) - len(rejected),
        "statuses": Counter(str(reply.status) for reply in replies),
        "reasons": Counter(reply.why for _, reply in rejected),
        "rejected": [{"id": row, "status": reply.status, "why": reply.why} for row, reply in rejected[:MOST_SHOWN]],
    }


def compared_scenarios(folder, task):
    """Which official scenarios of bad requests have a body, and why the others have none; None without their file."""
    path = folder / task_part(task, "measuring", "SCENARIOS")
    if not path.is_file():
        return None
    official = task_part(task, "measuring", "scenarios_of")(path.read_text(encoding="utf-8", errors="replace"))
    covered = Counter(tag for one in task_part(task, "measuring", "bad_bodies")() for tag in one["scenarios"])
    listed = task_part(task, "measuring", "NOT_IN_THE_BODY")
    if not official:
        raise UserError(f"{path}: no scenario in it that ends with a 4xx; take the file of the official release")
    return {
        **named(path),
        "official": len(official),
        "covered": {tag: covered[tag] for tag in official if tag in covered},
        "not_in_the_body": {tag: listed[tag] for tag in official if tag in listed},
        "forgotten": [tag for tag in official if tag not in covered and tag not in listed],
    }


def print_findings(own_test, scenarios, found):
    print(f"rejected {own_test['rejected']} of {own_test['bodies']} bodies that break the schema")
    if scenarios:
        print(
            f"of {counted(scenarios['official'], 'official scenario')} of bad requests {len(scenarios['covered'])} "
            f"have bodies here, {len(scenarios['not_in_the_body'])} are no matter of the body"
        )
    else:
        print("no official scenarios lie beside the OpenAPI file")
    for one in found:
        print(f"{one['path']}: accepted {one['accepted']:,} of {one['posted']:,} calls, {one['answers']:,} answers")
        for entry in one["rejected"]:
            print(f"  {entry['id']}: {entry['status']} {entry['why']}")


def stop_if_untrustworthy(own_test, scenarios):
    """A WorkFailed where the server cannot say no, the strict check lets a fault pass, or a scenario was forgotten."""
    problems = {
        "the mock server accepted": own_test["accepted"],
        "the strict check lets pass": own_test["passed_the_strict_check"],
        "neither a body nor a reason for the scenarios": scenarios["forgotten"] if scenarios else [],
    }
    words = [f"{what} {', '.join(names)}" for what, names in problems.items() if names]
    if words:
        raise WorkFailed(f"{'; '.join(words)}; the figures are not to be trusted before that is put right")
