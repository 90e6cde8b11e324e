"""What a measurement must hold to be drawn, and the sentence that names the place where a file does not."""

import jsonschema

from common import UserError, read_json
from load_test.measures import MEASURES

# What a level of load is, and what was measured at it.
LEVEL_FACTS = MEASURES[:5]
LEVEL_NUMBERS = MEASURES[5:]


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
        types = error.validator_value
        expected = types if isinstance(types, str) else " or ".join(types)
    if not place:
        return f"an {expected} was expected, found {type(error.instance).__name__}"
    name = repr(place[0]) if len(place) == 1 else ".".join(map(str, place))
    return f"{name} is {found}, expected {expected}"


def holds(needed, **others):
    """An object with all the needed properties; of the others those that it has must fit too."""
    return {"type": "object", "properties": needed | others, "required": list(needed)}


def list_of(item, n=None):
    return {"type": "array", "items": item} | ({} if n is None else {"minItems": n, "maxItems": n})


def named(item):
    """An object whose keys are names and whose values are all of one kind."""
    return {"type": "object", "additionalProperties": item}


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
TEXT = {"type": ["string", "null"]}
SIZE = {"type": ["number", "null"]}
FACTS = {"type": ["object", "null"]}
MEMORY = FACTS | {
    "properties": {"method": TEXT, "peak_gpu_memory_mib": SIZE, "peak_memory_mib": SIZE, "hardware": FACTS}
}
INTERVAL = {"type": ["array", "null"], "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
# Nothing to measure is a null value; a value comes with its interval.
KPI = holds({"value": SIZE, "n": COUNT}, ci95=INTERVAL) | {
    "if": {"properties": {"value": {"type": "number"}}},
    "then": holds({"ci95": {"type": "array"}}),
}
BIN = holds({"from": SHARE, "to": SHARE, "n": COUNT | {"minimum": 1}, "confidence": SHARE, "accuracy": SHARE})


def metrics_shape(task):
    """Of a metrics file what the report draws; the tables of verdicts where the task has them."""
    kpis = named(KPI)
    needed = {
        "model": WORD,
        "kpis": kpis,
        "data": holds({"sha256": TEXT, "rows": SIZE}),
        "slices": named(named(kpis | {"minProperties": 1})),
        "predictions": WORD,
    }
    texts = dict.fromkeys(("title", "checkpoint", "precision"), TEXT)
    words = dict.fromkeys(("kind", "task", "predictions_sha256"), WORD)
    made = {"training": MEMORY, "predicted": MEMORY, "versions": FACTS, "hardware": FACTS}
    shape = holds(needed, **texts, **words, **made)
    return Shape({"allOf": [shape, verdict_tables(task)]} if task.verdict else shape)


def verdict_tables(task):
    labels = list(task.verdict.labels)
    confusion = {
        "labels": {"const": labels},
        "said": list_of(WORD, len(labels) + 1),
        "counts": list_of(list_of(COUNT, len(labels) + 1), len(labels)),
    }
    return holds(
        {
            "confusion": holds(confusion),
            "calibration": list_of(BIN),
            "risk_coverage": list_of(holds({"coverage": SHARE, "risk": SHARE})),
            "slices": named(named(holds({"accuracy": KPI, "macro_f1": KPI}))),
        }
    )


MEASURED = SIZE | {"minimum": 0}
# A closed loop is driven by its concurrency, an open one by its rate; what nobody measured is null.
LEVEL = holds(
    {
        "form": {"enum": ["closed", "open", "verdicts"]},
        "concurrency": {"type": ["integer", "null"], "minimum": 1},
        "rate_per_s": SIZE | {"exclusiveMinimum": 0},
        "n": COUNT,
        "n_failed": COUNT,
        **dict.fromkeys(LEVEL_NUMBERS, MEASURED),
    }
) | {
    "allOf": [
        {
            "if": {"properties": {"form": {"const": form}}},
            "then": {"properties": {driven_by: {"type": kind}}},
        }
        for form, driven_by, kind in (("closed", "concurrency", "integer"), ("open", "rate_per_s", "number"))
    ]
}
ROOFLINE = dict.fromkeys(("bandwidth_gb_s", "matmul_tflop_s", "weights_gb"), MEASURED)
BENCHMARK_SHAPE = Shape(
    holds(
        {
            **dict.fromkeys(("task", "model", "title", "backend", "decoding"), WORD),
            "checkpoint": TEXT,
            "engine": {"type": "object"},
            "data": holds({"path": TEXT, "sha256": TEXT, "rows": SIZE}),
            "weights": {"enum": ["trained", "random"]},
            "floor": holds(ROOFLINE | {"note": TEXT}) | FACTS,
            "levels": list_of(LEVEL) | {"minItems": 1},
        },
        versions=FACTS,
        hardware=FACTS,
        **dict.fromkeys(("command", "git_commit", "finished"), TEXT),
    )
)
