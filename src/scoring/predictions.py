"""Predictions: what a model answered to labelled rows, kept in a file with a manifest beside it."""

import json
from pathlib import Path

from common import (
    UserError,
    existing_file,
    is_folder,
    quiet_libraries,
    read_json,
    row_id,
    sha256_file,
    sha256_text,
    shown_path,
    to_json,
    written_whole,
)
from constrained_decode import FAILED, Answer, engine_names, load_engine
from language_model.model_folder import model_config, model_identity, served_config, with_settings
from manifest import Clock, fingerprint, write_manifest
from rows import load_rows
from scoring import asking
from tasks import DEFAULT
from tasks import facts as task_facts


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
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="answer otherwise than the model's settings say, for example gen.temperature=1 gen.max_new_tokens=256",
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
        help="let the model write what it likes; shows what the guarantee of valid answers is worth",
    )
    parser.add_argument("--force", action="store_true", help="answer again even if nothing changed")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")


def path_beside(metrics):
    """reports/x_metrics.json -> reports/x_predictions.jsonl"""
    path = Path(metrics)
    return path.with_name(path.stem.removesuffix("_metrics") + "_predictions.jsonl")


def place_of(out):
    """What one writer at a time may write: all files of a run in this folder, as reports/phi4mini."""
    out = Path(out)
    return out.with_name(out.name.removesuffix("_metrics.json").removesuffix("_predictions.jsonl"))


def manifest_path(predictions):
    return Path(predictions).with_suffix(".manifest.json")


def predict_unless_done(args, task, out, n_samples=1):
    """Predict, or report that these very predictions are there already."""
    checked_options(args, task)
    config = with_settings(served_config(args, task) if args.endpoint else model_config(args, task), args.set)
    check_samples(n_samples, config)
    data = existing_file(args.data or task.under("data") / "test.jsonl", "run make prep first")
    rows = repeated(load_rows(data, task)[: args.limit], n_samples)
    name = predictions_fingerprint(args, task, config, data, rows)
    if not args.force and is_done(out, name):
        print(f"{out} is up to date: same model, rows, prompt, settings and code")
        return
    predict(args, task, config, data, rows, out, name)


def checked_options(args, task):
    for option in ("limit", "batch_size"):
        if (given := getattr(args, option)) is not None and given < 1:
            raise UserError(f"--{option} {given}: at least 1")
    if bool(args.endpoint) != load_engine(args.backend).NEEDS_ENDPOINT:
        raise UserError(
            f"--endpoint {args.endpoint}: --backend {args.backend} asks no server that runs already"
            if args.endpoint
            else f"--backend {args.backend} asks a server that is running: name it with --endpoint"
        )
    if args.schema and read_json(args.schema) != task.answer_schema:
        raise UserError(
            f"{args.schema}: differs from the task's own schema {task.schema_path}; answers are checked against one "
            "schema only"
        )


def check_samples(n_samples, config):
    if n_samples < 1:
        raise UserError(f"--samples {n_samples}: at least 1")
    if n_samples > 1 and not config.gen.temperature:
        raise UserError(
            f"--samples {n_samples}: at temperature 0 every answer to a row is the same; add --set gen.temperature=1"
        )


def repeated(rows, n_samples):
    """Each row so many times, numbered as `sample`, where that is more than once.

    All in one call of the engine: it draws by a row's place in the call, so no two samples are one draw, and a run that
    goes on draws what an uninterrupted one would.
    """
    if n_samples == 1:
        return rows
    return [row | {"sample": number} for row in rows for number in range(1, n_samples + 1)]


def predictions_fingerprint(args, task, config, data, rows):
    """The name of what the answers depend on: prompts as rendered, settings, the model, and the code of the engine."""
    engine = load_engine(args.backend)
    facts = {
        "rows": sha256_file(data),
        "prompts": sha256_text(to_json([task.messages(row["input"]) for row in rows])),
        "task": task_facts(task),
        "gen": vars(config.gen),
        "chat": vars(config.chat) if is_folder(args.model_path) or args.config else None,
        "model": model_identity(args.model_path),
        "engine": engine.identity(args.model_path),
        "options": [args.backend, args.limit, args.batch_size, args.unconstrained, args.endpoint],
    }
    return fingerprint(facts, __file__, engine.__file__, task.folder / "data.py")


def is_done(out, fingerprint):
    """Whether the file holds these very predictions, and none that a server could not give then."""
    manifest = manifest_path(out)
    facts = read_json(manifest) if Path(out).is_file() and manifest.is_file() else {}
    return facts.get("fingerprint") == fingerprint and not facts.get("rows_to_ask_again")


def predict(args, task, config, data, rows, out, name):
    """Answer the rows and write the file; how many of them have no answer."""
    clock = Clock()
    quiet_libraries()
    n_samples = rows[-1].get("sample", 1)
    with asking.journal_of(out, name) as journal:
        journal.report()
        engine = load_engine(args.backend).load(
            args.model_path,
            task,
            config,
            batch_size=args.batch_size,
            constrained=not args.unconstrained,
            **({"endpoint": args.endpoint} if args.endpoint else {}),
        )
        answers = asking.answers(engine, [task.messages(row["input"]) for row in rows], journal)
        swapped = swapped_verdicts(engine, task, rows, answers, journal)
        with written_whole(out) as file:
            for row, answer, other in zip(rows, answers, swapped, strict=True):
                file.write(json.dumps(prediction(row, answer, other, task), ensure_ascii=False) + "\n")
            file.flush()
            # A full disk has shown by now: only a manifest whose file will be replaced goes.
            manifest_path(out).unlink(missing_ok=True)
        answered = [one for one in answers if isinstance(one, Answer)]
        write_manifest(
            manifest_path(out),
            clock,
            task=task.name,
            **identity(args, config, data, len(rows) // n_samples),
            backend=args.backend,
            **engine.facts,
            gen=vars(config.gen),
            samples=n_samples,
            fingerprint=name,
            seconds_per_row=sum(one.seconds for one in answered) / max(1, len(answered)),
            rows_resumed=journal.n_found,
            rows_failed=len(answers) - len(answered),
            rows_to_ask_again=asking.n_to_ask_again(answers),
        )
    print(f"{len(rows):,} answers in {out}")


def swapped_verdicts(engine, task, rows, answers, journal):
    """Each row's verdict probabilities with its sides swapped; None where the task or the engine knows none."""
    swap = task.hook("data", "swap")
    found = [None] * len(rows)
    known = [at for at, one in enumerate(answers) if isinstance(one, Answer)]
    # KPIs alone read them, and are not made of several answers to a row.
    is_scored = swap and task.verdict and "sample" not in rows[0]
    # A server that reports no probabilities is not asked for those of the swapped sides either.
    if not (is_scored and known and all(answers[at].probabilities for at in known)):
        return found
    conversations = [task.messages(swap(rows[at]["input"])) for at in known]
    for at, shares in zip(known, asking.verdicts(engine, conversations, journal, title="swapped"), strict=True):
        found[at] = None if isinstance(shares, asking.Refusal) else shares
    return found


NO_ANSWER = Answer("", f"{FAILED}no answer", 0, 0, None, 0.0, overruled=None, late=None)


def prediction(row, answer, swapped, task):
    """One line of the file; what belongs to a verdict only where the task has one, an error only where it failed."""
    error = {}
    if isinstance(answer, asking.Refusal):
        error = {"error": answer.words}
        answer = NO_ANSWER
    parsed = task.parsed(answer.text)
    verdict = {}
    if task.verdict:
        verdict = {
            "label": task.verdict.of(parsed),
            "probabilities": answer.probabilities,
            "swapped_probabilities": swapped,
        }
    sample = {"sample": row["sample"]} if "sample" in row else {}
    return {
        "id": row_id(row),
        **sample,
        "input": row["input"],
        "gold": row["output"],
        "raw": answer.text,
        "answer": parsed,
        **error,
        **verdict,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "overruled": answer.overruled,
        "late": answer.late,
        "seconds": round(answer.seconds, 6),
    }


def n_to_ask_again(out):
    """How many rows have no answer yet, and may get one from the same command."""
    return read_json(manifest_path(out)).get("rows_to_ask_again", 0)


def failure_words(out):
    """What is said of rows without an answer; empty where there is none."""
    n = read_json(manifest_path(out)).get("rows_failed", 0)
    rows = "1 row has" if n == 1 else f"{n:,} rows have"
    again = n_to_ask_again(out)
    more = f"; the same command asks {again:,} of them again" if again else ""
    return f"{rows} no answer and an error in its place in {out}; they count as wrong{more}" if n else ""


def identity(args, config, data, n_rows):
    """What the report must know about whose answers these are."""
    splits = data.parent / "manifest.json"
    trained = Path(args.model_path) / "manifest.json"
    facts = read_json(trained) if trained.is_file() else {}
    return {
        "model": place_of(args.out).name,
        "title": config.name,
        "checkpoint": config.model_id,
        "kind": "language model",
        "training": facts.get("training", {"method": "none: not trained by this pipeline"}),
        "data": {
            "path": shown_path(data),
            "sha256": sha256_file(data),
            "rows": n_rows,
            "synthetic": splits.is_file() and bool(read_json(splits).get("synthetic")),
        },
    }
