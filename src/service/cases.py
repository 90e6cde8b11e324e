"""The task's own routes: one case, and many as a list or one a line."""

import asyncio
from collections import deque

from fastapi import Request
from fastapi.responses import StreamingResponse

from service import contract
from service.answering import too_busy
from service.bodies import (
    JSON_TYPE,
    LINES_TYPES,
    Json,
    Refused,
    check_type,
    json_bytes,
    parsed,
    read_body,
    while_there,
)
from tasks.case_limits import kind_of

BATCH_WINDOW = 64  # of a batch's cases so many are in the queue at a time
MOST_BATCHES = 3  # at a time: their cases leave room in the queue for single requests
BATCH_WITHIN_S = 120.0  # for its body to come
TRY_AGAIN_S = 0.1  # after the queue was full


def add_routes(app, service):
    route = service.contract.route
    batches = Batches(service)

    # The functions' names are part of /openapi.json.
    @app.post(route, name=route.strip("/"), **contract.one_case(service.contract))
    async def one(request: Request, detail: bool = False):
        return await answer_one(service, request, detail)

    @app.post(f"{route}/batch", **contract.many_cases(service.contract))
    async def batch(request: Request, detail: bool = False):
        return await batches.answer(request, detail)


async def answer_one(service, request, detail):
    check_type(request)
    body = await read_body(request, service.limits.most_body_bytes, service.limits.timeout_s)
    request.state.log = {"bytes": len(body)}
    case = checked(parsed(body), service.contract)
    if service.settings.log_records:
        request.state.log |= {service.contract.words.case: case}
    answer, reply = await while_there(request, service.answer(case, detail))
    request.state.log |= service.log_facts(answer)
    return Json(with_detail(service, case, answer, reply, detail))


def checked(value, task_contract):
    """A case, or Refused with what is wrong with it."""
    if problem := task_contract.check(value):
        raise Refused(422, problem)
    return value


def with_detail(service, case, answer, reply, detail):
    body = service.contract.body(answer)
    return body | service.detail(case, reply) if detail else body


class Batches:
    def __init__(self, service):
        self.service = service
        self.words = service.contract.words
        self.n_now = 0

    async def answer(self, request, detail):
        kind = check_type(request, *LINES_TYPES)
        if self.n_now >= MOST_BATCHES:
            raise too_busy(1)
        body = await read_body(request, self.service.limits.most_batch_bytes, BATCH_WITHIN_S)
        # Megabytes of JSON take seconds, in which others are to be answered.
        cases = await asyncio.to_thread(cases_of, body, kind != JSON_TYPE, self.words)
        request.state.log = {"bytes": len(body), self.words.cases: len(cases)}
        if self.service.settings.log_records:
            readable = [None if isinstance(case, Refused) else case for case in cases]
            request.state.log |= {f"all_{self.words.cases}": readable}
        return StreamingResponse(self.streamed(cases, detail), media_type="application/x-ndjson")

    async def streamed(self, cases, detail):
        """One line of JSON a case, in order; what is wrong with one says so in its place."""
        asked = deque()
        self.n_now += 1
        try:
            for case in cases:
                asked.append(asyncio.create_task(self.one(case, detail)))
                if len(asked) == BATCH_WINDOW:
                    yield json_bytes(await asked.popleft()) + b"\n"
            while asked:
                yield json_bytes(await asked.popleft()) + b"\n"
        finally:
            self.n_now -= 1
            # A client that has gone leaves the queue too.
            for task in asked:
                task.cancel()

    async def one(self, case, detail):
        while True:
            try:
                if isinstance(case, Refused):
                    raise case
                checked(case, self.service.contract)
                answer, reply = await self.service.answer(case, detail)
                return with_detail(self.service, case, answer, reply, detail)
            except Refused as error:
                # A batch waits for its turn; single requests are turned away.
                if error.status != 429:
                    return {"error": error.words, "status": error.status}
                await asyncio.sleep(TRY_AGAIN_S)


def cases_of(body, is_lines, words):
    """The cases of a list, or of one case a line; a line that cannot be read keeps its place as the Refused that it
    raised.
    """
    found = read_lines(body) if is_lines else parsed(body)
    if not isinstance(found, list):
        raise Refused(
            422,
            f"a list of {words.cases} is wanted, found {kind_of(found)}; one {words.case} a line has the content type "
            "application/x-ndjson",
        )
    if not found:
        raise Refused(422, f"no {words.case} in it: a list of {words.cases} or one {words.case} a line is wanted")
    return found


def read_lines(body):
    found = []
    for line in filter(bytes.strip, body.split(b"\n")):
        try:
            found.append(parsed(line))
        except Refused as error:
            found.append(error)
    return found
