"""The task's own routes: one case, and many as a list or one a line."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

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
    split_lines,
    split_list,
    while_there,
)

BATCH_WINDOW = 64  # of a batch's cases so many are in the queue at a time, where a server elsewhere answers them
BATCHES_WAITING = 2  # of a batch's cases the queue holds so many of the model's own batches: one is answered, one waits
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
    body = await read_body(request, service.limits)
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
    return body | service.detail(case, answer, reply) if detail else body


class Batches:
    def __init__(self, service):
        self.service = service
        self.limits = service.limits
        self.words = service.contract.words
        self.n_now = 0
        # One at a time: a batch is megabytes, and others are to be answered meanwhile.
        self.reader = ThreadPoolExecutor(1, "batch")

    async def answer(self, request, detail):
        kind = check_type(request, *LINES_TYPES)
        # Taken before the body is read: what waits for its last byte is a batch too.
        if self.n_now >= self.limits.most_batches:
            raise too_busy(1)
        self.n_now += 1
        try:
            cases = await self.read(request, kind)
            return Streamed(self.streamed(cases, detail), self.leave)
        except BaseException:
            self.leave()
            raise

    def leave(self):
        self.n_now -= 1

    async def read(self, request, kind):
        """The bytes of each case, or what is wrong with one in its place."""
        split = split_list if kind == JSON_TYPE else split_lines

        async def split_aside(body):
            return await asyncio.get_running_loop().run_in_executor(self.reader, split, body, self.limits, self.words)

        async def look(beginning):
            try:
                await split_aside(beginning)
            except Refused as error:
                # Other faults may be that the rest is missing.
                if error.status == 413:
                    raise

        body = await read_body(request, self.limits, self.limits.most_batch_bytes, self.limits.batch_within_s, look)
        cases = await split_aside(body)
        if not cases:
            raise Refused(422, f"no {self.words.case} in it: a list of {self.words.cases} or one a line is wanted")
        request.state.log = {"bytes": len(body), self.words.cases: len(cases)}
        if self.service.settings.log_records:
            readable = [None if isinstance(case, Refused) else parsed(case) for case in cases]
            request.state.log |= {f"all_{self.words.cases}": readable}
        return cases

    async def streamed(self, cases, detail):
        """One line of JSON a case, in order; what is wrong with one says so in its place."""
        asked = deque()
        engine = self.service.engine
        is_here = engine is not None and not engine.is_elsewhere
        window = min(BATCH_WINDOW, BATCHES_WAITING * engine.batch_size) if is_here else BATCH_WINDOW
        try:
            for case in cases:
                asked.append(asyncio.create_task(self.one(case, detail)))
                if len(asked) == window:
                    yield json_bytes(await asked.popleft()) + b"\n"
            while asked:
                yield json_bytes(await asked.popleft()) + b"\n"
        finally:
            # A client that has gone leaves the queue too.
            for task in asked:
                task.cancel()

    async def one(self, case, detail):
        while True:
            try:
                if isinstance(case, Refused):
                    raise case
                value = checked(parsed(case), self.service.contract)
                answer, reply = await self.service.answer(value, detail, is_patient=True)
                return with_detail(self.service, value, answer, reply, detail)
            except Refused as error:
                # A batch waits for its turn; single requests are turned away.
                if error.status != 429:
                    return error.body | {"status": error.status}
                await asyncio.sleep(TRY_AGAIN_S)


class Streamed(StreamingResponse):
    """A batch's answer, whose place is free again when it ends, however it ends."""

    def __init__(self, lines, leave):
        super().__init__(lines, media_type="application/x-ndjson")
        self.leave = leave

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.leave()
