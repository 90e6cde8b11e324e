"""Sets of labelled pairs whose truth is match or no match, and the model that answers them."""

import random
from pathlib import Path

from common import ROOT, UserError, sha256_file, sha256_text, shown_path
from manifest import fingerprint
from measurements import task_part
from tasks import facts as task_facts


def read_set(path, task, limit, seed):
    """(rows, facts about them, why they cannot be scored or None)."""
    from rows import load_rows

    facts = {"path": shown_path(path), "sha256": sha256_file(path), "rows": 0}
    if not path.read_text(encoding="utf-8", errors="replace").strip():
        return [], facts, "the file is empty"
    rows = load_rows(path, task)
    facts["rows"] = len(rows)
    n_review = sum(row["output"][task.verdict.key] == task.verdict.review for row in rows)
    if n_review:
        return (
            [],
            facts,
            f"{n_review:,} of {len(rows):,} rows are {task.verdict.review}; only sets whose truth is match or no match "
            "can be scored",
        )
    if limit and limit < len(rows):
        rows = [rows[at] for at in sorted(random.Random(seed).sample(range(len(rows)), limit))]
    facts |= {"n": len(rows), "n_positive": sum(is_match(row, task) for row in rows)}
    if facts["n_positive"] in (0, len(rows)):
        return [], facts, f"all {len(rows):,} rows are of one class; a ranking needs both"
    return rows, facts, None


def is_match(row, task):
    return row["output"][task.verdict.key] == match_label(task)


def match_label(task):
    return task_part(task, "baseline", "VERDICTS_BY_WEIGHT")[0]


def no_match_label(task):
    return task_part(task, "baseline", "VERDICTS_BY_WEIGHT")[-1]


def model_facts(args, task):
    """Which model: the hash of its weights, and the settings and sources that turn a case into an answer."""
    from constrained_decode import load_engine
    from language_model import model_folder

    load_engine(args.backend)
    config = model_folder.model_config(args, task)
    folder = Path(args.model_path)
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.gguf")])
    if not weights:
        raise UserError(
            f"{folder}: holds no weights (*.safetensors, *.bin or *.gguf); name the folder of a whole model"
        )
    hashes = [sha256_file(path) for path in weights]
    return {
        "path": shown_path(folder),
        "title": config.name,
        "sha256": hashes[0] if len(hashes) == 1 else sha256_text(" ".join(hashes)),
        "bytes": sum(path.stat().st_size for path in weights),
        "backend": args.backend,
        "batch_size": args.batch_size,
        "settings": model_folder.config_text(config),
        "sources": answer_sources(args.backend, task),
    }


def verdict_probabilities(engine, task, cases):
    """One row a case, one column a label, from the model's verdict position alone."""
    from scoring.asking import in_order

    found = in_order(engine.verdicts([task.messages(case) for case in cases]), len(cases), "verdicts")
    return [[shares[label] for label in task.verdict.labels] for shares in found]


def engine_words(backend, engine):
    return f"{backend}: " + ", ".join(f"{key} {value}" for key, value in engine.facts.items())


def answer_sources(backend, task):
    """The name of the code between a case and its answer: the task's prompt and the engine."""
    engine = ROOT / "src" / "constrained_decode" / f"{backend}.py"
    return fingerprint(task_facts(task), engine, task.module("data").__file__)
