"""The model as an OpenAI-compatible server: /v1/models and /v1/chat/completions, so that ordinary clients and the
benchmark can ask it.

The conversation goes to the model as it comes; the answer fits the task's schema whatever is asked for, and who asks
for another one is refused.
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


def add_routes(app, service):
    @app.get("/v1/models", **contract.MODELS)
    async def models():
        return {
            "object": "list",
            "data": [
                {
                    "id": NAME,
                    "object": "model",
                    "created": 0,
                    "owned_by": "steward",
                    "answer_schema": service.task.answer_schema,
                }
            ],
        }

    @app.post("/v1/chat/completions", **contract.CHAT)
    async def chat(request: Request):
        check_type(request)
        body = await read_body(request, service.limits.most_body_bytes, service.limits.timeout_s)
        request.state.log = {"bytes": len(body)}
        asked = checked(parsed(body), service.task.answer_schema)
        _, answer = await while_there(request, service.answered(asked["messages"], bool(asked.get("logprobs"))))
        return told(asked, answer, service.task)


def checked(asked, schema):
    """A request that can be answered, or what is wrong with it."""
    if not isinstance(asked, dict):
        raise Refused(422, "an object with model and messages is wanted")
    if asked.get("model", NAME) != NAME:
        raise Refused(404, f"no such model; there is: {NAME}")
    messages = asked.get("messages")
    if (
        not isinstance(messages, list)
        or not all(map(is_message, messages))
        or [one["role"] for one in messages] not in ROLES
    ):
        raise Refused(
            422,
            "messages must be one of the user, or one of the system and one of the user, each with a content of text",
        )
    wanted = asked.get("response_format") or {"type": "text"}
    if not isinstance(wanted, dict) or wanted.get("type") not in ("text", "json_object", "json_schema"):
        raise Refused(422, "response_format must be text, json_object or json_schema")
    if wanted["type"] == "json_schema" and (
        not isinstance(wanted.get("json_schema"), dict) or wanted["json_schema"].get("schema") != schema
    ):
        raise Refused(422, "this model answers by its own schema only")
    for name in ("stream", "logprobs"):
        if not isinstance(asked.get(name, False), bool | None):
            raise Refused(422, f"{name} must be true or false")
    if asked.get("n") not in (None, 1):
        raise Refused(422, "n must be 1")
    return asked


def is_message(one):
    return isinstance(one, dict) and isinstance(one.get("role"), str) and is_text(one.get("content"))


def told(asked, answer, task):
    """The answer in OpenAI's words, whole or as a stream of one piece."""
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": NAME}
    usage = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    logprobs = {"logprobs": {"content": verdict_tokens(answer, task)}} if asked.get("logprobs") else {}
    message = {"role": "assistant", "content": answer.text}
    if not asked.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason} | logprobs
        return Json(head | {"object": "chat.completion", "choices": [choice], "usage": usage})
    pieces = [
        head
        | {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": message, "finish_reason": answer.finish_reason} | logprobs],
        }
    ]
    if isinstance(asked.get("stream_options"), dict) and asked["stream_options"].get("include_usage"):
        pieces.append(head | {"object": "chat.completion.chunk", "choices": [], "usage": usage})
    lines = [f"data: {json.dumps(piece, ensure_ascii=False)}\n\n" for piece in pieces] + ["data: [DONE]\n\n"]
    return StreamingResponse(iter(lines), media_type="text/event-stream")


def verdict_tokens(answer, task):
    """The answer up to its verdict as two tokens, the second with every verdict's log-probability."""
    before, verdict = (answer.text.partition(f'"{task.verdict.key}":"')[index] for index in (1, 2))
    label = next((label for label in task.verdict.labels if verdict.startswith(label)), None)
    if not label or not answer.probabilities:
        return []
    opening = {"token": "{" + before, "logprob": 0.0, "bytes": None, "top_logprobs": []}
    shares = sorted(answer.probabilities.items(), key=lambda one: -one[1])
    top = [{"token": name, "logprob": math.log(max(share, 1e-30)), "bytes": None} for name, share in shares]
    return [
        opening,
        {
            "token": label,
            "logprob": math.log(max(answer.probabilities[label], 1e-30)),
            "bytes": None,
            "top_logprobs": top,
        },
    ]
