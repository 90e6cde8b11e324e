"""What the review page asks: the next case, a decision, undo, statistics; and the page's own files."""

import re
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse

from service.bodies import Refused, check_type, is_text, parsed, read_body
from service.review import contract

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
# The page loads nothing from elsewhere and runs nothing but its own script.
GUARD = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src "
    "data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
NAME = re.compile(contract.NAME["pattern"])


def add_routes(app, service):
    for path, (name, kind) in FILES.items():
        app.get(path, include_in_schema=False)(page_file(name, kind))

    # Not GET: whoever asks keeps the case from the others for a while.
    @app.post("/review/next", **contract.next_case(service.contract))
    async def next_case(request: Request):
        check_site(request)
        check_type(request)
        reviews = reviews_of(service)
        asked = await body_of(request, service.limits)
        nobody = isinstance(asked, dict) and asked.get("reviewer", "") == ""
        item = await reviews.in_turn(reviews.next_for, "" if nobody else name_of(asked))
        labels = list(reviews.verdict.labels)
        return with_card(reviews, item) | {"labels": labels, "page": reviews.page()}

    @app.post("/review/decide", **contract.decide(service.contract))
    async def decide(request: Request):
        check_site(request)
        check_type(request)
        reviews = reviews_of(service)
        asked = checked(await body_of(request, service.limits), service.contract)
        entry = await reviews.in_turn(reviews.decide, asked)
        return {"n": entry["n"], "action": entry["action"], "hash": entry["hash"]}

    @app.post("/review/undo", **contract.undo(service.contract))
    async def undo(request: Request):
        check_site(request)
        check_type(request)
        reviews = reviews_of(service)
        asked = await body_of(request, service.limits)
        item = await reviews.in_turn(reviews.undo, name_of(asked))
        return with_card(reviews, item)

    @app.get("/review/statistics", **contract.statistics(service.contract))
    async def statistics():
        reviews = reviews_of(service)
        await reviews.in_turn(reviews.refresh)
        return reviews.statistics() | {"progress": reviews.progress()}


def reviews_of(service):
    """The service's reviews, or Refused where there are none."""
    if service.reviews:
        return service.reviews
    if service.settings.review_folder:
        raise Refused(503, "the model is still being loaded", {"Retry-After": "1"})
    raise Refused(
        404,
        f"no review is set up here; start the service with --review <{service.contract.words.cases}.jsonl> or "
        "--keep_traffic",
    )


def check_site(request):
    """Refuse what a page of another site makes a browser send; a client that is no browser names no site."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is None:
        # Browsers leave it out where the page came without TLS from another machine.
        is_own = origin is None or origin.partition("://")[2] == request.headers.get("host")
    else:
        is_own = site in ("same-origin", "none")
    if not is_own:
        raise Refused(403, "sent by a page of another site; only the review page itself may ask this")


def with_card(reviews, item):
    return {"card": reviews.card(item) if item else None, "progress": reviews.progress()}


async def body_of(request, limits):
    return parsed(await read_body(request, limits))


def page_file(name, kind):
    async def send():
        return FileResponse(PAGE / name, media_type=kind, headers=GUARD)

    return send


def checked(asked, task_contract):
    """A decision that may stay in the file for good, or Refused."""
    labels = task_contract.task.verdict.labels
    fields = contract.decision_fields(task_contract)
    if not isinstance(asked, dict):
        raise Refused(422, "an object with pair, action, verdict and reviewer is wanted")
    name_of(asked)
    if asked.get("action") not in ("decide", "skip"):
        raise Refused(422, "action must be decide or skip")
    if asked["action"] == "decide" and asked.get("verdict") not in labels:
        raise Refused(422, f"verdict must be one of {', '.join(labels)}")
    if not isinstance(asked.get("pair"), str):
        raise Refused(422, "pair must be the hash that /review/next gave")
    if not isinstance(asked.get("blind"), bool | None) or not isinstance(asked.get("shown"), str | None):
        raise Refused(422, "blind must be true or false, shown the verdict that was seen")
    for name, properties in fields.items():
        check_text(name, asked.get(name), properties)
    if not is_duration(asked.get("seconds")):
        raise Refused(422, "seconds must be a number from 0 to a day's")
    return asked


def check_text(name, value, properties):
    if value is None or "maxLength" not in properties:
        return
    least = properties.get("minLength", 0)
    if not is_text(value) or not least <= len(value) <= properties["maxLength"]:
        raise Refused(422, f"{name} must be text of {least} to {properties['maxLength']:,} characters")


def is_duration(value):
    if value is None:
        return True
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= contract.A_DAY_S


def name_of(asked):
    name = asked.get("reviewer") if isinstance(asked, dict) else None
    if not is_text(name) or not NAME.fullmatch(name):
        raise Refused(422, "reviewer must be a name of 1 to 99 characters on one line, the first no space")
    return name
