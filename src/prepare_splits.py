"""Split labelled rows 80/10/10: python src/prepare_splits.py --in data/all.jsonl --out data

Stratified by what the task names; rows that share a part (a record), a near-identical part or a `group` stay in one
split.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import json_lines
import locks
import sources
import tables
from common import (
    ROOT,
    UserError,
    counted,
    parse_json,
    progress,
    read_json,
    read_lines,
    run,
    sha256_file,
    to_json,
    written_whole,
)
from manifest import Clock, fingerprint, write_manifest
from rows import checked_rows
from tasks import DEFAULT, load_task, plain_tables, synthesis, task_named_in
from tasks.class_mix import mix_warnings, one_class_problem

ALL_ROWS = "rows"  # the one class of a task that stratifies by nothing
MOST_CLASSES = 100  # each needs rows in every split, and a class's number is kept in one byte
SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
MOST_CLASSES_SHOWN = 6  # of a split, the most frequent
SYNTHETIC_ROWS = 2_000


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    with locks.only_writer(Path(args.out) / "splits"), sources.labelled(args, task) as source:
        if not args.force and is_done(args, task, source):
            print(f"the splits in {args.out} are up to date: same rows, settings and code (--force makes them again)")
            date_after_inputs(args)
        else:
            split(args, task, source, clock)


def split(args, task, source, clock):
    """Make the three files and, last, their manifest."""
    if source.synthetic:
        draw(args, task, source)
    from entity_resolution import near_duplicates  # numpy: not for --help

    complete = Completing(task, args.reasons)
    index, classes = read_index(source, task, complete)
    groups = near_duplicates.groups(index)
    split_of, n_moved = assign(index.labels, groups, args.seed)
    facts = {"fingerprint": splits_fingerprint(source.path, args, task), "source_sha256": sha256_file(source.path)}
    counts = write_splits(source, args.out, split_of, index, classes, complete)
    (Path(args.out) / "manifest.json").unlink(missing_ok=True)
    source.keep()
    report(counts, n_moved, groups, index, task, source)
    complete.report(len(index.labels))
    write_manifest(
        Path(args.out) / "manifest.json",
        clock,
        task=task.name,
        source=Path(source.name).name,
        synthetic=source.synthetic,
        **facts,
        **source.facts,
        reasons=args.reasons,
        reasons_made=complete.n,
        seed=args.seed,
        rows=len(index.labels),
        pairs_moved=n_moved,
        groups=int(groups.max()) + 1,
        largest_group=largest(groups),
        identical_pairs=index.identical_pairs,
        classes=counts,
        sha256={name: sha256_file(Path(args.out) / f"{name}.jsonl") for name in SPLITS},
    )


def parse_args():
    task = task_named_in("prepare_splits.py")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--in",
        dest="source",
        help="labelled rows: JSON Lines, or a CSV, TSV, Excel or Parquet table; where data/all.jsonl is missing, a "
        "table of that name or synthetic rows take its place (default data/all.jsonl)",
    )
    parser.add_argument("--out", help="folder for train.jsonl, val.jsonl, test.jsonl and manifest.json (default data)")
    parser.add_argument(
        "--rows",
        type=int,
        default=SYNTHETIC_ROWS,
        help=f"how many synthetic rows where --in is missing (default {SYNTHETIC_ROWS:,})",
    )
    parser.add_argument("--seed", type=int, default=42, help="another seed gives another split (default 42)")
    parser.add_argument(
        "--reasons",
        choices=("keep", "make", "drop"),
        default="keep",
        help="sentences beside the verdicts: keep those of the rows and make missing ones from the fields; make all; "
        "or drop all for one that names no field (default keep)",
    )
    parser.add_argument("--force", action="store_true", help="split again even if nothing changed")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    tables.add_options(parser)
    (task.module("from_tables") or plain_tables).add_options(parser)
    return checked_args(parser.parse_args(), task)


def checked_args(args, task):
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: a whole number from 0 on")
    if args.rows < 1:
        raise UserError(f"--rows {args.rows}: a whole number from 1 on")
    if args.reasons != "keep" and not task.module("completing"):
        raise UserError(
            f"--reasons {args.reasons}: the task {task.name} makes no part of an answer (it has no "
            f"src/tasks/{task.name}/completing.py); leave the option out"
        )
    folder = task.under("data")
    args.source = args.source or folder / sources.USUAL
    args.out = args.out or folder
    return args


class Completing:
    """Gives answers the part that they lack, as the task makes it, and counts them."""

    def __init__(self, task, how):
        self.task = task
        self.how = how
        self.n = 0

    def __call__(self, case, answer):
        whole = self.task.completed(case, answer, self.how)
        self.n += whole is not answer
        return whole

    def report(self, n_rows):
        if self.n:
            part = self.task.verdict.reason if self.task.verdict else "answer"
            how = "without a word about fields" if self.how == "drop" else f"from the fields of their {self.task.case}"
            print(f"the {part} of {self.n:,} of {counted(n_rows, 'row')} was made, {how} (--reasons {self.how})")


def is_done(args, task, source):
    """Whether these very splits are there already, byte for byte."""
    manifest = Path(args.out) / "manifest.json"
    if not manifest.is_file() or not source.path.is_file():
        return False
    if source.kept_as and not source.kept_as.is_file():
        return False
    facts = read_json(manifest)
    splits = {name: Path(args.out) / f"{name}.jsonl" for name in SPLITS}
    return facts.get("fingerprint") == splits_fingerprint(source.path, args, task) and all(
        path.is_file() and sha256_file(path) == facts["sha256"].get(name) for name, path in splits.items()
    )


def splits_fingerprint(rows, args, task):
    """The name of what the splits depend on: rows, settings, what the task says of its rows, and the code."""
    facts = {"task": task.name, "rows": sha256_file(rows), "seed": args.seed, "stratify_by": task.stratify_by}
    facts["reasons"] = args.reasons
    code = [__file__, task.folder / "data.py"]
    if completing := task.module("completing"):
        code.append(completing.__file__)
    if Path(rows).name == sources.SYNTHETIC and (generator := task.module("synthetic")):
        code.append(generator.__file__)
        facts["synthetic_rows"] = args.rows
    return fingerprint(facts | {"schema": task.answer_schema}, *code)


def date_after_inputs(args):
    """A file that was touched but not changed must not bring make back here each time."""
    manifest = Path(args.out) / "manifest.json"
    inputs = [Path(args.source), *(path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".yaml"))]
    if max(path.stat().st_mtime for path in inputs if path.is_file()) > manifest.stat().st_mtime:
        manifest.touch()


def draw(args, task, source):
    """Synthetic rows in the place of a file that is not there, which the run says."""
    print(
        f"{args.source} is not there: making {args.rows:,} synthetic {task.case}s in {source.path} instead; "
        f"put your own labelled {task.case}s into {args.source}, or name a table with --in, for a model that knows "
        "your data",
        flush=True,
    )
    synthesis.make(task.name, args.rows, 1, source.path)
    source.name = str(source.path)


def read_index(source, task, complete):
    """(the few numbers kept of each row, the names of the classes), from one pass that checks every row."""
    from entity_resolution import near_duplicates

    with open(source.path, "rb") as lines:
        n_lines = sum(1 for _ in lines)
    if n_lines == 0:
        raise UserError(f"{source.name}: the file is empty; it needs one labelled {task.case} a line")
    index = near_duplicates.Index(n_lines, task)
    classes = list(task.verdict.labels) if task.stratifies_by_verdict else []
    problems = json_lines.Problems()
    with progress(n_lines, "rows", "check and index") as bar:
        for number, row in checked_rows(source.path, task, problems, complete, source.place):
            verdict = task.verdict.labels.index(task.verdict.of(row["output"])) if task.verdict else 0
            index.add(number, row, class_number(row, task.stratify_by, classes), verdict)
            bar.update(1)
        index.close()
    for number, message in index.conflicts(source):
        problems.note(source.place(number), message)
    problems.stop_if_any(source.name)
    if index.n < len(SPLITS):
        raise UserError(
            f"{source.name}: {counted(index.n, 'labelled row')}; {len(SPLITS)} splits need at least {len(SPLITS)}"
        )
    verdicts = Counter(task.verdict.labels[at] for at in index.verdicts) if task.verdict else {}
    if problem := one_class_problem(verdicts, task):
        raise UserError(f"{source.name}: {problem}")
    return index, classes


def class_number(row, path, classes):
    """The row's class by the value that `path` names, as output.city; a new one is added to the classes."""
    value = row
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, dict) else None
    if path and value is None:
        raise UserError(f"stratify_by: {path} in task.yaml: a row has no such value ({to_json(row)[:120]})")
    name = ALL_ROWS if not path else value if isinstance(value, str) else to_json(value)
    if name not in classes:
        if len(classes) == MOST_CLASSES:
            raise UserError(f"stratify_by: {path} has over {MOST_CLASSES} values; name one with fewer in task.yaml")
        classes.append(name)
    return classes.index(name)


def assign(labels, groups, seed):
    """A split for every row: groups whole, every class as near to 80/10/10 as the groups allow. Also how many pairs
    grouping moved.

    Groups larger than one row are dealt out first, largest first; rows alone in their group fill what is left, in the
    order of the plain stratified split, from which as few as possible are to move.
    """
    import numpy as np

    n_classes = int(labels.max()) + 1
    quota = np.outer(list(SPLITS.values()), np.bincount(labels, minlength=n_classes))
    plain = np.empty(len(labels), np.int8)
    rng = np.random.default_rng(seed)
    fill(plain, [rng.permutation(np.flatnonzero(labels == c)) for c in range(n_classes)], quota)
    in_group = np.bincount(groups)[groups] > 1
    split_of = np.full(len(labels), -1, np.int8)
    lacking = quota.copy()
    for block in sorted(members(groups, in_group), key=len, reverse=True):
        mix = np.bincount(labels[block], minlength=n_classes)
        # What this group adds to the squared distance from the quotas, in shares of each quota.
        best = int(np.argmin((mix * (mix - 2 * lacking) / np.maximum(quota, 1e-9)).sum(1)))
        split_of[block] = best
        lacking[best] -= mix
    alone = [np.flatnonzero(~in_group & (labels == c)) for c in range(n_classes)]
    fill(split_of, [rows[np.argsort(plain[rows], kind="stable")] for rows in alone], np.maximum(lacking, 0))
    return split_of, int((in_group & (split_of != plain)).sum())


def members(groups, in_group):
    """The rows of each group that has more than one."""
    import numpy as np

    rows = np.flatnonzero(in_group)[np.argsort(groups[in_group], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1) if len(rows) else []


def fill(split_of, rows_of_class, room):
    """Deal out each class's rows in their order, in proportion to the room; what a split loses to rounding in one class
    it gets first in the next.
    """
    import numpy as np

    owed = np.zeros(len(room))
    for rows, shares in zip(rows_of_class, room.T, strict=True):
        exact = shares / max(shares.sum(), 1e-9) * len(rows)
        counts = np.floor(exact).astype(int)
        owed += exact - counts
        first = np.argsort(-owed, kind="stable")[: len(rows) - counts.sum()]
        counts[first] += 1
        owed[first] -= 1
        split_of[rows] = np.repeat(np.arange(len(room)), counts)


def write_splits(source, folder, split_of, index, classes, complete):
    """Second pass: every line goes to its split as it stands, or with what its answer lacked; counts the classes."""
    names = list(SPLITS)
    counts = {name: dict.fromkeys(classes, 0) for name in names}
    paths = [Path(folder) / f"{name}.jsonl" for name in names]
    at = 0
    with written_whole(*paths) as files, progress(len(split_of), "rows", "write splits") as bar:
        for number, line in read_lines(source.path):
            if at < len(split_of) and index.lines[at] == number:
                line = completed_line(line, complete) if complete.n else line
                files[split_of[at]].write(line if line.endswith("\n") else line + "\n")
                counts[names[split_of[at]]][classes[index.labels[at]]] += 1
                at += 1
                bar.update(1)
    return counts


def completed_line(line, complete):
    """The line of a row whose answer is whole; the same line where it was."""
    row = parse_json(line)
    whole = complete.task.completed(row["input"], row["output"], complete.how)
    return line if whole is row["output"] else json.dumps(row | {"output": whole}, ensure_ascii=False)


def largest(groups):
    import numpy as np

    return int(np.bincount(groups).max())


def report(counts, n_moved, groups, index, task, source):
    n_rows = len(index.labels)
    n_groups = int(groups.max()) + 1
    print(
        f"{counted(n_rows, 'synthetic row' if source.synthetic else 'row')}, {counted(n_groups, 'group')}, largest "
        f"{largest(groups):,}; {counted(n_moved, task.case)} moved so that nothing stands in two splits; "
        f"{counted(index.identical_pairs, f'repeated {task.case}')}"
    )
    for name, classes in counts.items():
        total = sum(classes.values())
        print(f"  {name:<5} {total:>9,} ({100 * total / n_rows:.1f} %): {mix_of(classes, total)}")
    if largest(groups) > 1 and largest(groups) > SPLITS["test"] * n_rows:
        print(
            f"warning: one group holds {100 * largest(groups) / n_rows:.0f} % of the rows; rows that look alike are "
            "chained together, so the splits cannot keep 80/10/10"
        )
    for warning in mix_warnings(counts, task):
        print(f"warning: {warning}")
    for name, classes in counts.items():
        missing = [label for label, n in classes.items() if n == 0 and any(other[label] for other in counts.values())]
        if missing:
            of_class = f" of {'the class' if len(missing) == 1 else 'the classes'} {first_of(missing)}"
            of_class = "" if missing == [ALL_ROWS] else of_class
            print(f"warning: {name} has no row{of_class}; scores there cannot be measured")


def mix_of(classes, total):
    """How many rows of each class, as words; of many classes the most frequent."""
    found = list(classes.items())
    if len(found) > MOST_CLASSES_SHOWN:
        found = sorted((one for one in found if one[1]), key=lambda one: -one[1])
    shares = [f"{label} {n:,} ({100 * n / max(total, 1):.1f} %)" for label, n in found]
    return first_of(shares)


def first_of(names):
    """The first of many names in a list, and how many more there are."""
    n_more = len(names) - MOST_CLASSES_SHOWN
    return ", ".join(names[:MOST_CLASSES_SHOWN]) + (f" and {n_more:,} more" if n_more > 0 else "")


if __name__ == "__main__":
    run(main)
