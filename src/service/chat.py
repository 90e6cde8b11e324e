"""The model as an OpenAI-compatible server: /v1/models and /v1/chat/completions, so that ordinary clients and the
benchmark can ask it.

The conversation goes to the model as it comes; the answer is of the task's kind whatever is asked for, and a request
for another kind is refused.
"""

import json
import math
import secrets
import time

from fastapi import Request
from fastapi.responses import StreamingResponse

from service import contract
from service.bodies import Json, Refused, check_type, is_text, parsed, read_body, while_there

NAME = "steward"
ROLES = (["user"], ["system", "user"])
LEAST_SHARE = 1e-30  # whose logarithm is still a number


def add_routes(app, service):
    @app.get("/v1/models", **contract.models(service.contract))
    async def models():
        facts = {"id": NAME, "object": "model", "created": 0, "owned_by": "steward"}
        return {"object": "list", "data": [facts | {"answer_schema": service.task.answer_schema}]}

    @app.post("/v1/chat/completions", **contract.chat(service.contract))
    async def chat(request: Request):
        check_type(request)
        body = await read_body(request, service.limits)
        request.state.log = {"bytes": len(body)}
        asked = checked(parsed(body), service.task)
        _, reply = await while_there(request, service.answered(asked["messages"], bool(asked.get("logprobs"))))
        return completion(asked, reply, service.task)


def checked(asked, task):
    """A request that can be answered, or Refused with what is wrong with it."""
    if not isinstance(asked, dict):
        raise Refused(422, "an object with model and messages is wanted")
    if asked.get("model", NAME) != NAME:
        raise Refused(404, f"no such model; there is: {NAME}")
    if not are_messages(asked.get("messages")):
        raise Refused(
            422,
            "messages must be one of the user, or one of the system and one of the user, each with a content of text",
        )
    check_format(asked.get("response_format") or {"type": "text"}, task)
    for name in ("stream", "logprobs"):
        if not isinstance(asked.get(name, False), bool | None):
            raise Refused(422, f"{name} must be true or false")
    if asked.get("logprobs") and not task.verdict:
        raise Refused(422, "logprobs: only the probabilities of a verdict are known, and this task has none")
    if asked.get("n") not in (None, 1):
        raise Refused(422, "n must be 1")
    return asked


def are_messages(value):
    return isinstance(value, list) and all(map(is_message, value)) and [one["role"] for one in value] in ROLES


def is_message(one):
    return isinstance(one, dict) and isinstance(one.get("role"), str) and is_text(one.get("content"))


def check_format(wanted, task):
    if not isinstance(wanted, dict) or wanted.get("type") not in ("text", "json_object", "json_schema"):
        raise Refused(422, "response_format must be text, json_object or json_schema")
    if wanted["type"] == "text":
        return
    # The text of a tool call is its wrapper, which is not JSON.
    if task.answer not in ("verdict", "json"):
        raise Refused(422, "this model does not answer in JSON; response_format must be text")
    if wanted["type"] == "json_schema" and (
        not isinstance(wanted.get("json_schema"), dict) or wanted["json_schema"].get("schema") != task.answer_schema
    ):
        raise Refused(422, "this model answers by its own schema only")


def completion(asked, reply, task):
    """The answer in OpenAI's words, whole or as a stream of one piece."""
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": NAME}
    usage = {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }
    choice = {"index": 0, "finish_reason": reply.finish_reason}
    if asked.get("logprobs"):
        choice["logprobs"] = {"content": verdict_tokens(reply, task.verdict)}
    message = {"role": "assistant", "content": reply.text}
    if not asked.get("stream"):
        choices = [choice | {"message": message}]
        return Json(head | {"object": "chat.completion", "choices": choices, "usage": usage})
    piece = head | {"object": "chat.completion.chunk"}
    pieces = [piece | {"choices": [choice | {"delta": message}]}]
    if isinstance(asked.get("stream_options"), dict) and asked["stream_options"].get("include_usage"):
        pieces.append(piece | {"choices": [], "usage": usage})
    lines = [f"data: {json.dumps(piece, ensure_ascii=False)}\n\n" for piece in pieces]
    return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


def verdict_tokens(reply, verdict):
    """The answer up to its verdict as two tokens, the second with every verdict's log-probability."""
    _, key, behind = reply.text.partition(f'"{verdict.key}":"')
    label = next((label for label in verdict.labels if behind.startswith(label)), None)
    if not label or not reply.probabilities:
        return []
    shares = sorted(reply.probabilities.items(), key=lambda one: -one[1])
    return [
        token("{" + key, 0.0, []),
        token(label, logprob(reply.probabilities[label]), [token(name, logprob(share)) for name, share in shares]),
    ]


def token(text, logprob, others=None):
    found = {"token": text, "logprob": logprob, "bytes": None}
    return found if others is None else found | {"top_logprobs": others}


def logprob(share):
    return math.log(max(share, LEAST_SHARE))
