"""What stands before every route: a request's id, its key, the count of who is inside, one log line each, and an end
for every error.

A log line holds sizes and times, and no text of a request; an unexpected error is named by its type and place,
never by its words.
"""

import hashlib
import hmac
import json
import re
import secrets
import sys
import time
from urllib.parse import urlsplit

from service.metrics import HTTP_SECONDS, IN_FLIGHT, REQUESTS, place_of
from service.settings import LOOPBACK

OPEN = ("/", "/healthz", "/readyz", "/openapi.json", "/page.js", "/page.css")
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """ASGI middleware."""

    def __init__(self, app, settings):
        self.app = app
        self.settings = settings
        self.hashes = [bytes.fromhex(one) for one in settings.key_hashes]

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.perf_counter()
        seen = {"status": 500}

        async def answered(message):
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        IN_FLIGHT.inc()
        try:
            if self.hashes and scope["path"] not in OPEN and not self.knows(headers):
                words = (
                    "this API key is not known here"
                    if b"authorization" in headers
                    else "an API key is wanted: Authorization: Bearer <key>"
                )
                await refuse(answered, 401, words, [(b"www-authenticate", b"Bearer")])
            elif not self.hashes and not names_this_machine(headers):
                # Else a page from anywhere could ask through a browser on this machine, under a name of its own that
                # leads here.
                await refuse(answered, 421, "without API keys only requests to 127.0.0.1 or localhost are answered")
            else:
                await self.app(scope, receive, answered)
        except Exception as error:
            seen["error"] = place_of(error)
            # Where the answer has begun it can only be cut.
            if seen["status"] == 500:
                await refuse(answered, 500, f"something went wrong; the log says more under request {request_id}")
        finally:
            IN_FLIGHT.dec()
            self.log(scope, request_id, seen, time.perf_counter() - start)

    def knows(self, headers):
        """Whether a key was given that may ask; every key is compared, in a time that does not depend on where two
        differ.
        """
        words = headers.get(b"authorization", b"").split(b" ", 1)
        given = hashlib.sha256(words[1].strip()).digest() if len(words) == 2 and words[0].lower() == b"bearer" else b""
        return bool(sum(hmac.compare_digest(given, known) for known in self.hashes))

    def log(self, scope, request_id, seen, seconds):
        route = getattr(scope.get("route"), "path", "unknown")
        REQUESTS.labels(route, scope["method"] if route != "unknown" else "any", str(seen["status"])).inc()
        HTTP_SECONDS.labels(route).observe(seconds)
        line = {
            "time": round(time.time(), 3),
            "request": request_id,
            "route": route,
            "method": scope["method"],
            "status": seen["status"],
            "ms": round(1000 * seconds, 1),
        } | scope["state"].get("log", {})
        if "error" in seen:
            line["error"] = seen["error"]
        print(json.dumps(line), file=sys.stderr, flush=True)


def names_this_machine(headers):
    """Whether the request was sent to a name that no other machine has."""
    try:
        return urlsplit(f"//{headers.get(b'host', b'localhost').decode('latin-1')}").hostname in LOOPBACK
    except ValueError:
        return False


async def refuse(send, status, words, headers=()):
    body = json.dumps({"error": words}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})
