"""Predictions: what a model answered to labelled rows, kept in a file with a manifest beside it."""

import json
from pathlib import Path

import jsonschema

from common import (
    ROOT,
    UserError,
    existing_file,
    parsed_answer,
    progress,
    quiet_libraries,
    read_json,
    row_id,
    sha256_file,
    sha256_text,
    shown_path,
    written_whole,
)
from constrained_decode import engine_names, load_engine
from language_model.model_folder import config_text, model_config, model_identity
from manifest import Clock, write_manifest
from rows import load_rows
from tasks import DEFAULT

SOURCES = (
    "scoring/predictions.py",
    "common.py",
    "dataset.py",
    "language_model/*.py",
    "tasks/__init__.py",
    "constrained_decode/_*.py",
)


def add_arguments(parser, model_required):
    parser.add_argument(
        "--model_path", required=model_required, help="merged model folder, or a hub name together with --config"
    )
    parser.add_argument("--backend", default="hf", help=f"engine: {', '.join(engine_names())} (default hf)")
    parser.add_argument("--schema", help="the answer's JSON Schema (default: the task's own)")
    parser.add_argument("--data", help="labelled rows to answer (default data/test.jsonl)")
    parser.add_argument(
        "--config",
        help="the model's YAML, for a model that the pipeline did not train (default: what its manifest holds)",
    )
    parser.add_argument("--limit", type=int, help="answer only the first so many rows")
    parser.add_argument("--batch_size", type=int, help="prompts at once (default: 64 on a GPU, 16 on a CPU)")
    parser.add_argument(
        "--endpoint",
        help="address of an OpenAI-compatible server, with --backend openai_api; --model_path is then its model's name",
    )
    parser.add_argument(
        "--unconstrained",
        action="store_true",
        help="let the model write what it likes; shows what the JSON guarantee is worth",
    )
    parser.add_argument("--force", action="store_true", help="answer again even if nothing changed")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")


def path_beside(metrics):
    """reports/x_metrics.json -> reports/x_predictions.jsonl"""
    path = Path(metrics)
    return path.with_name(path.stem.removesuffix("_metrics") + "_predictions.jsonl")


def manifest_path(predictions):
    return Path(predictions).with_suffix(".manifest.json")


def predict_unless_done(args, task, out):
    """Predict, or say that these very predictions are there already."""
    for option in ("limit", "batch_size"):
        if (given := getattr(args, option)) is not None and given < 1:
            raise UserError(f"--{option} {given}: at least 1")
    load_engine(args.backend)
    if args.endpoint and args.backend != "openai_api":
        raise UserError(f"--endpoint {args.endpoint}: only --backend openai_api asks a server")
    config = model_config(args)
    data = Path(args.data or task.under("data") / "test.jsonl")
    existing_file(data, "run make prep first")
    if args.schema and read_json(args.schema) != task.answer_schema:
        raise UserError(
            f"{args.schema}: differs from the task's own schema {task.schema}; the answers are checked against one "
            "schema only"
        )
    fingerprint = sha256_text(
        json.dumps(
            [
                config_text(config),
                model_identity(args.model_path),
                sha256_file(data),
                task.system_text,
                task.answer_schema,
                args.backend,
                args.limit,
                args.batch_size,
                args.unconstrained,
                args.endpoint,
                source_hashes(args.backend),
                engine_identity(args),
            ],
            sort_keys=True,
        )
    )
    if not args.force and is_done(out, fingerprint):
        print(f"{out} is up to date: same model, rows, prompt and settings")
        return
    predict(args, task, config, data, out, fingerprint)


def engine_identity(args):
    """What an engine reads beside the model's own folder, where it does."""
    identity = getattr(load_engine(args.backend), "identity", None)
    return identity(args.model_path) if identity else None


def source_hashes(backend):
    """Of every file that an answer depends on; what engines share begins with an underscore."""
    return [
        sha256_file(path)
        for name in (*SOURCES, f"constrained_decode/{backend}.py")
        for path in sorted((ROOT / "src").glob(name))
    ]


def is_done(out, fingerprint):
    manifest = manifest_path(out)
    return Path(out).is_file() and manifest.is_file() and read_json(manifest).get("fingerprint") == fingerprint


def predict(args, task, config, data, out, fingerprint):
    clock = Clock()
    rows = load_rows(data, task)[: args.limit]
    quiet_libraries()
    engine = load_engine(args.backend).load(
        args.model_path,
        task,
        config,
        batch_size=args.batch_size,
        constrained=not args.unconstrained,
        **({"endpoint": args.endpoint} if args.endpoint else {}),
    )
    answers = in_order(engine.answers([task.messages(row["input"]) for row in rows]), len(rows), "answers")
    swap = getattr(task.module("data"), "swap", None)
    # A server that tells no probabilities is not asked for those of the swapped records either.
    told = swap and all(answer.probabilities for answer in answers)
    swapped = (
        in_order(engine.verdicts([task.messages(swap(row["input"])) for row in rows]), len(rows), "swapped verdicts")
        if told
        else [None] * len(rows)
    )
    schema = jsonschema.Draft202012Validator(task.answer_schema)
    manifest_path(out).unlink(missing_ok=True)
    with written_whole(out) as file:
        for row, answer, other in zip(rows, answers, swapped, strict=True):
            file.write(json.dumps(prediction(row, answer, other, schema, task), ensure_ascii=False) + "\n")
    write_manifest(
        manifest_path(out),
        clock,
        **identity(args, config, data, rows),
        backend=args.backend,
        **engine.facts,
        gen=vars(config.gen),
        fingerprint=fingerprint,
        seconds_per_row=sum(answer.seconds for answer in answers) / len(rows),
    )
    print(f"{len(rows):,} answers in {out}")


def in_order(numbered, n, title):
    """The engine's results back in the rows' order, under a progress bar."""
    found = [None] * n
    with progress(n, "rows", title) as bar:
        for position, value in numbered:
            found[position] = value
            bar.update(1)
    return found


def prediction(row, answer, swapped, schema, task):
    valid = parsed_answer(answer.text, schema)
    return {
        "id": row_id(row),
        "input": row["input"],
        "gold": row["output"],
        "raw": answer.text,
        "answer": valid,
        "label": valid[task.verdict.key] if valid else None,
        "probabilities": answer.probabilities,
        "swapped_probabilities": swapped,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "overruled": answer.overruled,
        "late": answer.late,
        "seconds": round(answer.seconds, 6),
    }


def identity(args, config, data, rows):
    """What the report must know about whose answers these are."""
    splits = data.parent / "manifest.json"
    trained = Path(args.model_path) / "manifest.json"
    facts = read_json(trained) if trained.is_file() else {}
    return {
        "model": Path(args.out).name.removesuffix("_metrics.json").removesuffix("_predictions.jsonl"),
        "title": config.name,
        "checkpoint": config.model_id,
        "kind": "language model",
        "training": facts.get("training", {"method": "none: not trained by this pipeline"}),
        "data": {
            "path": shown_path(data),
            "sha256": sha256_file(data),
            "rows": len(rows),
            "synthetic": splits.is_file() and bool(read_json(splits).get("synthetic")),
        },
    }
