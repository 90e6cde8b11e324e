"""What clients are promised: the routes' schemas, examples and errors, as /openapi.json lists them.

What depends on the task comes from its TaskContract; review/contract.py has the review's routes.
"""

from fastapi.openapi.utils import get_openapi

VERSION = "1"
ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
ANSWER = {"description": "Where the task itself refused the request: what the model answered"}
OPEN_ROUTES = ("/healthz", "/readyz")  # need no key
ASKED = (400, 401, 408, 413, 415, 422, 429, 502, 503, 504)  # how a request for an answer may end
OBJECT = {"content": {"application/json": {"schema": {"type": "object"}}}}


def meanings(contract):
    """{status: what it means}"""
    words = contract.words
    review = f" or {words.case}, or no review is set up" if contract.task.verdict else ""
    return {
        400: "Not strict JSON in UTF-8",
        401: "No key, or an unknown one",
        403: "Sent by a page of another site",
        404: f"No such model{review}",
        408: "The body did not come in time",
        409: "Nothing to undo, or the model's verdict is another now",
        413: words.too_large,
        415: "Another content type than application/json",
        421: "Without keys: another name than this machine's",
        422: ", ".join(filter(None, (f"Not {words.full_case}, or not within the limits", words.refused))),
        429: "Too many requests are waiting",
        502: "The model or its server sent no answer",
        503: "Not ready",
        504: "No answer in time",
        507: "The decision could not be kept: no space left, or the file is not what was written",
    }


def errors(contract, *statuses):
    """The error answers of a route."""
    meaning = meanings(contract)
    found = {}
    for status in (*statuses, *([421] if 401 in statuses else [])):
        found[status] = {
            "description": meaning[status],
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        if status in (429, 503):
            found[status]["headers"] = {
                "Retry-After": {"description": "Seconds after which to come again", "schema": {"type": "string"}}
            }
    return found


def json_body(schema, example=None):
    content = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def answer(description, schema, example=None):
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    if example is not None:
        content["example"] = example
    return {200: {"description": description, "content": {"application/json": content}}}


def one_case(contract):
    """The route that answers one case."""
    words = contract.words
    case, verdict = contract.schema_names()
    example = None if contract.example_answer is None else contract.body(contract.example_answer)
    return {
        "summary": f"One {words.case}, one {words.answer}",
        "response_model": None,
        "responses": answer(f"The {words.answer}", verdict, example) | errors(contract, *ASKED),
        "openapi_extra": json_body({"$ref": f"#/components/schemas/{case}"}, contract.example),
    }


def many_cases(contract):
    """The route that answers a list of cases."""
    words = contract.words
    lines = {"application/x-ndjson": {"schema": {"type": "string"}}}
    # A wrong case is answered in its place, so the schema of an item allows anything.
    item = {"description": f"{words.a_case.capitalize()}; what is none is told in its place"}
    return {
        "summary": f"Many {words.cases}: a list, or one a line; one line of JSON each comes back, in order",
        "response_model": None,
        "responses": {200: {"description": f"One {words.answer} or error a line", "content": lines}}
        | errors(contract, 400, 401, 408, 413, 415, 422, 429, 503),
        "openapi_extra": json_body(
            {"type": "array", "minItems": 1, "items": item}, None if contract.example is None else [contract.example]
        ),
    }


HEALTHZ = {"summary": "The process is alive", "responses": answer("Alive", "State", {"status": "ok"})}


def readyz(contract):
    not_ready = {
        "description": meanings(contract)[503],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/State"}}},
    }
    return {
        "summary": "The model is loaded, its server answers",
        "responses": answer("Ready", "State", {"status": "ready"}) | {503: not_ready},
    }


def metrics(contract):
    text = {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "summary": "Prometheus metrics",
        "response_model": None,
        "responses": {200: text} | errors(contract, 401),
    }


def values(most_levels):
    """{name: schema} of a case's values, one for each number of levels that they may nest."""
    plain = [{"type": kind} for kind in ("string", "number", "boolean", "null")]
    found = {}
    for n in range(most_levels):
        inner = {"$ref": f"#/components/schemas/Value{n - 1}"}
        nested = [{"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner}]
        found[f"Value{n}"] = {"anyOf": [*plain, *(nested if n else [])]}
    return found


def schemas(contract):
    most_levels = contract.limits.most_levels
    case, verdict = contract.schema_names()
    return values(most_levels) | {
        "Error": ERROR | ({"properties": ERROR["properties"] | {"answer": ANSWER}} if contract.words.refused else {}),
        "State": {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]},
        case: contract.case_schema({"$ref": f"#/components/schemas/Value{most_levels - 1}"}),
        verdict: contract.answer_schema(),
    }


def describe(app, contract, wants_key):
    """Put the schemas where the routes' descriptions look for them."""

    def openapi():
        if not app.openapi_schema:
            found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            parts = found.setdefault("components", {})
            parts.setdefault("schemas", {}).update(schemas(contract))
            if wants_key:
                ask_for_key(found)
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi


def ask_for_key(described):
    described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, routes in described["paths"].items():
        if path not in OPEN_ROUTES:
            for route in routes.values():
                route["security"] = [{"key": []}]


def message_of(role):
    return {
        "type": "object",
        "properties": {"role": {"const": role}, "content": {"type": "string"}},
        "required": ["role", "content"],
    }


def tuple_of(*items):
    return {"type": "array", "minItems": len(items), "maxItems": len(items), "prefixItems": list(items)}


def models(contract):
    return {
        "summary": "The model's name for OpenAI clients",
        "responses": {200: {"description": "One model"} | OBJECT} | errors(contract, 401),
    }


def chat(contract):
    has_schema = contract.task.answer in ("verdict", "json")
    its_own = "; it answers by its own schema whatever is asked" if has_schema else ""
    completion = {"type": "object", "required": ["choices", "usage"]}
    asked = {
        "model": {"const": "steward"},
        "stream": {"type": ["boolean", "null"]},
        # Only a verdict's probabilities are known.
        "logprobs": {"type": ["boolean", "null"]} if contract.task.verdict else {"enum": [False, None]},
        "messages": {"anyOf": [tuple_of(message_of("user")), tuple_of(message_of("system"), message_of("user"))]},
    }
    example = {"model": "steward", "messages": [{"role": "user", "content": contract.chat_example()}]}
    return {
        "summary": f"The same model for OpenAI clients{its_own}",
        "response_model": None,
        "responses": {
            200: {
                "description": "A completion, or with stream its pieces",
                "content": {"application/json": {"schema": completion}, "text/event-stream": {}},
            }
        }
        | errors(contract, *ASKED, 404),
        "openapi_extra": json_body({"type": "object", "required": ["messages"], "properties": asked}, example),
    }
