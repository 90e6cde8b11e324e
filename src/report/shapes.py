"""What a measurement must hold to be drawn, and the sentence that says where a file leaves that shape."""

import jsonschema

from common import UserError, read_json

LEVEL_NUMBERS = (
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "first_token_p50_ms",
    "first_token_p95_ms",
    "req_per_s",
    "output_tok_per_s",
    "prompt_tok_per_s",
    "prompt_tokens_mean",
    "output_tokens_mean",
    "json_valid_raw_pct",
    "json_valid_pct",
    "closed_at_budget_pct",
    "mask_overruled_pct",
    "floor_p50_ms",
    "p50_of_floor",
    "floor_req_per_s",
    "req_per_s_of_floor_pct",
)


def checked(path, shape, task, again):
    """A file of this task that holds all that the report draws."""
    facts = read_json(path)
    error = next(shape.iter_errors(facts), None)
    if error:
        raise UserError(f"{path}: {difference(error)}; {again}")
    if facts.get("task", task.name) != task.name:
        raise UserError(
            f"{path}: it is of the task '{facts['task']}', not '{task.name}'; give --task {facts['task']} or another "
            "--reports"
        )
    return facts


def difference(error):
    """Where a file leaves its shape, what stands there and what was expected."""
    place = list(error.path)
    found = repr(error.instance)[:60]
    expected = f"{error.validator} {error.validator_value}"
    if error.validator == "required":
        place.append(next(key for key in error.validator_value if key not in error.instance))
        found = "missing"
        expected = "a value"
    elif error.validator == "type":
        expected = " or ".join(
            [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        )
    if not place:
        return f"an {expected} was expected, found {type(error.instance).__name__}"
    return (
        f"{place[0]!r} is {found}, expected {expected}"
        if len(place) == 1
        else f"{'.'.join(map(str, place))} is {found}, expected {expected}"
    )


def holds(*needed, **properties):
    return {"type": "object", "properties": properties, "required": needed}


def every(item, kind="array"):
    return {"type": kind, {"array": "items", "object": "additionalProperties"}[kind]: item}


def drawable(_, value):
    """Python reads NaN, infinities and integers beyond a float from JSON; none of them can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 10**12


TYPES = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
    {"number": drawable, "integer": lambda _, value: drawable(_, value) and value == int(value)}
)
Shape = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=TYPES)

WORD = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
TEXT, SIZE, FACTS = ({"type": [kind, "null"]} for kind in ("string", "number", "object"))
MEMORY = FACTS | {
    "properties": {"method": TEXT, "peak_gpu_memory_mib": SIZE, "peak_memory_mib": SIZE, "hardware": FACTS}
}
# Nothing to measure is a null value; a value comes with its interval.
KPI = holds(
    "value",
    "n",
    value=SIZE,
    n=COUNT,
    ci95={"type": ["array", "null"], "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
) | {"if": {"properties": {"value": {"type": "number"}}}, "then": holds("ci95", ci95={"type": "array"})}
BIN = holds(
    "from",
    "to",
    "n",
    "confidence",
    "accuracy",
    **{"from": SHARE},
    to=SHARE,
    n=COUNT | {"minimum": 1},
    confidence=SHARE,
    accuracy=SHARE,
)


def metrics_shape(task):
    """Of a metrics file what the report draws; the tables of verdicts where the task has them."""
    shape = holds(
        "model",
        "kpis",
        "data",
        "slices",
        "predictions",
        model=WORD,
        predictions=WORD,
        predictions_sha256=WORD,
        title=TEXT,
        checkpoint=TEXT,
        precision=TEXT,
        kind=WORD,
        task=WORD,
        data=holds(sha256=TEXT, rows=SIZE),
        training=MEMORY,
        predicted=MEMORY,
        versions=FACTS,
        hardware=FACTS,
        kpis=every(KPI, "object"),
        slices=every(every(every(KPI, "object") | {"minProperties": 1}, "object"), "object"),
    )
    return Shape({"allOf": [shape, verdict_tables(task)]} if task.verdict else shape)


def verdict_tables(task):
    labels = list(task.verdict.labels)
    counts = every(every(COUNT) | length(len(labels) + 1)) | length(len(labels))
    return holds(
        "confusion",
        "calibration",
        "risk_coverage",
        confusion=holds(
            "labels",
            "said",
            "counts",
            labels={"const": labels},
            said=every(WORD) | length(len(labels) + 1),
            counts=counts,
        ),
        calibration=every(BIN),
        risk_coverage=every(holds("coverage", "risk", coverage=SHARE, risk=SHARE)),
        slices=every(every(holds("accuracy", "macro_f1"), "object"), "object"),
    )


def length(n):
    return {"minItems": n, "maxItems": n}


MEASURED = SIZE | {"minimum": 0}
# A closed loop is driven by its concurrency, an open one by its rate; what nobody measured is null.
LEVEL = holds(
    "form",
    "concurrency",
    "rate_per_s",
    "n",
    "n_failed",
    *LEVEL_NUMBERS,
    form={"enum": ["closed", "open", "verdicts"]},
    concurrency={"type": ["integer", "null"], "minimum": 1},
    rate_per_s=SIZE | {"exclusiveMinimum": 0},
    n=COUNT,
    n_failed=COUNT,
    **dict.fromkeys(LEVEL_NUMBERS, MEASURED),
) | {
    "allOf": [
        {
            "if": {"properties": {"form": {"const": "closed"}}},
            "then": {"properties": {"concurrency": {"type": "integer"}}},
        },
        {"if": {"properties": {"form": {"const": "open"}}}, "then": {"properties": {"rate_per_s": {"type": "number"}}}},
    ]
}
FLOOR = (
    holds(
        "bandwidth_gb_s",
        "matmul_tflop_s",
        "weights_gb",
        "note",
        bandwidth_gb_s=MEASURED,
        matmul_tflop_s=MEASURED,
        weights_gb=MEASURED,
        note=TEXT,
    )
    | FACTS
)
BENCHMARK_SHAPE = Shape(
    holds(
        "task",
        "model",
        "title",
        "checkpoint",
        "backend",
        "decoding",
        "engine",
        "data",
        "weights",
        "floor",
        "levels",
        task=WORD,
        model=WORD,
        title=WORD,
        checkpoint=TEXT,
        backend=WORD,
        decoding=WORD,
        engine={"type": "object"},
        data=holds("path", "sha256", "rows", path=TEXT, sha256=TEXT, rows=SIZE),
        weights={"enum": ["trained", "random"]},
        floor=FLOOR,
        versions=FACTS,
        hardware=FACTS,
        command=TEXT,
        git_commit=TEXT,
        finished=TEXT,
        levels=every(LEVEL) | {"minItems": 1},
    )
)
