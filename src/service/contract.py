"""What clients are promised: the routes' schemas, examples and errors, as /openapi.json tells them."""

VERSION = "1"
DESCRIPTION = (
    "Two records of a CRM in, a verdict out: DUPLICATE, POSSIBLE (a person should look) or NO_MATCH, with one sentence "
    "why. "
    "Every answer fits the schema, whatever the records hold."
)
ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
REASONS = {
    400: "Not strict JSON in UTF-8",
    401: "No key, or an unknown one",
    404: "No such model or pair, or no review is set up",
    408: "The body did not come in time",
    409: "Nothing to undo, or the model's verdict is another now",
    413: "Too large: the body, or the records for the model",
    415: "Another content type than application/json",
    421: "Without keys: another name than this machine's",
    422: "Not a pair of records, or not within the limits",
    429: "Too many requests are waiting",
    502: "The model or its server sent no answer",
    503: "Not ready",
    504: "No answer in time",
    507: "No space left to keep the decision",
}
PAIR = {
    "record1": {"name": "Ann Lee", "phone": "+1 555 0101", "city": "Austin"},
    "record2": {"full_name": "A. Lee", "telephone": "555-0101", "city": "Austin"},
}
VERDICT = {"result": "DUPLICATE", "reasoning": "Likely the same: phone and city match; name is similar."}


def errors(*statuses):
    """The error answers of a route."""
    found = {}
    for status in (*statuses, *([421] if 401 in statuses else [])):
        found[status] = {
            "description": REASONS[status],
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        if status in (429, 503):
            found[status]["headers"] = {
                "Retry-After": {"description": "Seconds after which to come again", "schema": {"type": "string"}}
            }
    return found


def json_body(schema, example):
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def answer(description, schema, example):
    return {
        200: {
            "description": description,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}},
        }
    }


ASKED = (400, 401, 408, 413, 415, 422, 429, 502, 503, 504)
MATCH = {
    "summary": "One pair, one verdict",
    "response_model": None,
    "responses": answer("The verdict", "Verdict", VERDICT) | errors(*ASKED),
    "openapi_extra": json_body({"$ref": "#/components/schemas/Pair"}, PAIR),
}
BATCH = {
    "summary": "Many pairs: a list, or one a line; one line of JSON each comes back, in order",
    "response_model": None,
    "responses": {
        200: {
            "description": "One verdict or error a line",
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
        }
    }
    | errors(400, 401, 408, 413, 415, 422, 429, 503),
    "openapi_extra": json_body(
        {"type": "array", "minItems": 1, "items": {"description": "A pair; what is none is told in its place"}}, [PAIR]
    ),
}
HEALTHZ = {"summary": "The process is alive", "responses": answer("Alive", "State", {"status": "ok"})}
READYZ = {
    "summary": "The model is loaded, its server answers",
    "responses": answer("Ready", "State", {"status": "ready"})
    | {
        503: {
            "description": REASONS[503],
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/State"}}},
        }
    },
}
METRICS = {
    "summary": "Prometheus metrics",
    "response_model": None,
    "responses": {200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    | errors(401),
}


def values(most_levels):
    """{name: schema} of a record's values, one for each number of levels that they may nest."""
    plain = [{"type": kind} for kind in ("string", "number", "boolean", "null")]
    found = {}
    for n in range(most_levels):
        inner = {"$ref": f"#/components/schemas/Value{n - 1}"}
        found[f"Value{n}"] = {
            "anyOf": [
                *plain,
                *([{"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner}] if n else []),
            ]
        }
    return found


def schemas(settings):
    value = {"$ref": f"#/components/schemas/Value{settings.limits.most_levels - 1}"}
    record = {
        "type": "object",
        "additionalProperties": value,
        "maxProperties": settings.limits.most_fields,
        "description": f"Field names and values; up to {settings.limits.most_levels} levels deep",
    }
    shares = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}}
    return values(settings.limits.most_levels) | {
        "Error": ERROR,
        "State": {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]},
        "Pair": {
            "type": "object",
            "properties": {"record1": record, "record2": record},
            "required": ["record1", "record2"],
            "additionalProperties": False,
        },
        "Verdict": {
            "type": "object",
            "required": ["result", "reasoning"],
            "additionalProperties": False,
            "properties": {
                "result": {"enum": ["DUPLICATE", "POSSIBLE", "NO_MATCH"]},
                "reasoning": {"type": "string", "minLength": 1, "maxLength": 320},
                "probabilities": {"anyOf": [shares, {"type": "null"}]},
                "closed_at_budget": {"type": "boolean"},
                "evidence": {"type": "array", "items": {"type": "object"}},
            },
        },
    }


def describe(app, settings):
    """Put the schemas where the routes' descriptions look for them."""
    from fastapi.openapi.utils import get_openapi

    def openapi():
        if not app.openapi_schema:
            found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            parts = found.setdefault("components", {})
            parts.setdefault("schemas", {}).update(schemas(settings))
            if settings.key_hashes:
                parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, routes in found["paths"].items():
                    if path not in ("/healthz", "/readyz"):
                        for route in routes.values():
                            route["security"] = [{"key": []}]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi


def said_by(role):
    return {
        "type": "object",
        "properties": {"role": {"const": role}, "content": {"type": "string"}},
        "required": ["role", "content"],
    }


def few(*items):
    return {"type": "array", "minItems": len(items), "maxItems": len(items), "prefixItems": list(items)}


MODELS = {
    "summary": "The model's name for OpenAI clients",
    "responses": {200: {"description": "One model", "content": {"application/json": {"schema": {"type": "object"}}}}}
    | errors(401),
}
CHAT = {
    "summary": "The same model for OpenAI clients; it answers by its own schema whatever is asked",
    "response_model": None,
    "responses": {
        200: {
            "description": "A completion, or with stream its pieces",
            "content": {
                "application/json": {"schema": {"type": "object", "required": ["choices", "usage"]}},
                "text/event-stream": {},
            },
        }
    }
    | errors(*ASKED, 404),
    "openapi_extra": json_body(
        {
            "type": "object",
            "required": ["messages"],
            "properties": {
                "model": {"const": "steward"},
                "stream": {"type": ["boolean", "null"]},
                "logprobs": {"type": ["boolean", "null"]},
                "messages": {"anyOf": [few(said_by("user")), few(said_by("system"), said_by("user"))]},
            },
        },
        {
            "model": "steward",
            "messages": [{"role": "user", "content": '{"record1":{"name":"Ann Lee"},"record2":{"name":"A. Lee"}}'}],
        },
    ),
}

REVIEW_NEXT = {
    "summary": "The pair to review next, least certain first",
    "responses": {
        200: {
            "description": "A card, or null where nothing waits",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    }
    | errors(401, 404, 422, 503),
}
NAME = {"type": "string", "pattern": "^\\S.{0,98}$"}
SAID = {
    "pair": {"type": "string"},
    "reviewer": NAME,
    "seconds": {"type": "number", "minimum": 0, "maximum": 86_400},
    "blind": {"type": "boolean"},
    "shown": {"type": "string", "description": "The model's verdict that the reviewer saw"},
    "reason": {"type": "string", "maxLength": 1000},
    "reasoning": {"type": "string", "minLength": 1, "maxLength": 320},
}
DECISION = {
    "anyOf": [
        {
            "type": "object",
            "required": ["pair", "action", "verdict", "reviewer"],
            "properties": SAID
            | {"action": {"const": "decide"}, "verdict": {"enum": ["DUPLICATE", "POSSIBLE", "NO_MATCH"]}},
        },
        {
            "type": "object",
            "required": ["pair", "action", "reviewer"],
            "properties": SAID | {"action": {"const": "skip"}},
        },
    ]
}
REVIEW_DECIDE = {
    "summary": "Decide a pair, or skip it; on the disk before it is acknowledged",
    "response_model": None,
    "responses": {
        200: {
            "description": "The decision's number and hash",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    }
    | errors(400, 401, 404, 408, 409, 413, 415, 422, 503, 507),
    "openapi_extra": json_body(
        DECISION,
        {
            "pair": "6f1d...",
            "action": "decide",
            "verdict": "NO_MATCH",
            "reason": "other person, same household",
            "reviewer": "kim",
            "seconds": 8.2,
        },
    ),
}
REVIEW_UNDO = {
    "summary": "Take back the reviewer's last decision",
    "response_model": None,
    "responses": {
        200: {
            "description": "The pair that is open again",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    }
    | errors(400, 401, 404, 408, 409, 413, 415, 422, 503, 507),
    "openapi_extra": json_body(
        {"type": "object", "required": ["reviewer"], "properties": {"reviewer": NAME}}, {"reviewer": "kim"}
    ),
}
REVIEW_STATISTICS = {
    "summary": "Agreement, overrides, time a pair",
    "responses": {200: {"description": "Numbers", "content": {"application/json": {"schema": {"type": "object"}}}}}
    | errors(401, 404, 503),
}
