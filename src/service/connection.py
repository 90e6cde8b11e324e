"""A client's connection, bounded before any route is asked: its head's bytes and seconds, what is left of a body that
was refused, an answer that nobody takes, and how many connections there are.

uvicorn's protocol has no such bounds: a head could be endless, and a client that reads nothing could stay for ever.
"""

import collections
import functools
import json
import socket
import sys
import time

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.bodies import json_bytes
from service.metrics import REQUESTS

LOOK_S = 0.25  # how often a connection is looked at
DRAINED_EVERY_S = 0.05  # a part of a refused body, some 256 KiB, is read and forgotten
LAST_S = 2.0  # while the service ends, nobody waits longer for a client that takes nothing
KEPT_ALIVE_S = 30
MOST_BEHIND = 8  # requests that wait on a connection behind the one that is being answered
SEND_BUFFER = 131_072  # bytes; the system's own grows to megabytes, and hides that a client takes nothing
REQUEST_LINE = len(" ") + len(" HTTP/1.1\r\n")  # what stands around method and target
HEADER_LINE = len(": \r\n")
NOT_DRAINED = "more of a refused body came than is read"
TOO_MANY_BEHIND = f"more than {MOST_BEHIND} requests came behind one that is being answered"
BLANK_LINE = len("\r\n")


def options(settings):
    """What uvicorn is started with, by the service and by its tests."""
    return {
        "http": functools.partial(Connection, settings.limits),
        # A connection that changes its protocol would leave these bounds behind.
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "timeout_keep_alive": KEPT_ALIVE_S,
    }


class TooMuch(Exception):
    """A request's head, what is left of a refused body, or what waits behind a request is more than allowed."""


class Counted:
    """A transport that counts what is written to it, and leaves it to the connection how it is closed."""

    def __init__(self, transport, connection):
        self.transport = transport
        self.connection = connection
        self.n_written = 0

    def __getattr__(self, name):
        return getattr(self.transport, name)

    def write(self, data):
        self.n_written += len(data)
        self.transport.write(data)

    def is_closing(self):
        return self.connection.is_ending or self.transport.is_closing()

    def close(self):
        self.connection.end()

    @property
    def n_taken(self):
        return self.n_written - self.transport.get_write_buffer_size()


class Flow(FlowControl):
    """Of a connection on which a request waits for its turn nothing more is read."""

    def __init__(self, connection):
        super().__init__(connection.transport)
        self.connection = connection

    def resume_reading(self):
        if not self.connection.pipeline:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    def __init__(self, limits, **options):
        super().__init__(**options)
        self.limits = limits
        self.unanswered = collections.deque()  # requests without a whole answer, the one that is answered first
        self.head_since = None  # since when a head is awaited; None while there is nothing to wait for
        self.n_head = 0  # bytes of the head that were read
        self.n_pending = 0  # bytes that came since it began, as long as it is not whole
        self.is_read = True  # nothing is left to come of the last request
        self.is_ending = False  # what still comes is forgotten
        self.is_deaf = False  # and not even parsed
        self.is_last = False  # the service ends
        self.unread_since = None
        self.n_drained = 0
        self.n_taken = 0
        self.taken_at = 0.0

    # ---- beginning and end

    def connection_made(self, transport):
        super().connection_made(Counted(transport, self))
        self.flow = Flow(self)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.head_since = self.taken_at = self.loop.time()
        self.timer = self.loop.call_later(LOOK_S, self.look)
        if len(self.connections) > self.limits.most_connections:
            self.refuse(503, "too many connections", is_read=True)

    def connection_lost(self, exc):
        self.timer.cancel()
        # uvicorn tells the request that came last, which may wait behind the one that is being answered.
        for cycle in self.unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def end(self):
        """Close, once the rest of the request has come: else the system would reset the connection, and the client lose
        an answer that is on its way.
        """
        raw = self.transport.transport
        if self.is_ending or raw.is_closing():
            return
        if self.is_read and not self.pipeline:
            raw.close()
            return
        # Behind the last answer no other request is read.
        self.is_deaf = self.is_deaf or bool(self.pipeline) or self.head_since is not None
        self.pipeline.clear()
        self.head_since = None
        self.is_ending = True
        raw.write_eof()
        self.flow.resume_reading()

    def shutdown(self):
        self.is_last = True
        if self.is_idle():
            self.transport.transport.close()
        else:
            super().shutdown()

    def is_idle(self):
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    # ---- what comes

    def data_received(self, data):
        if self.is_deaf:
            self.n_drained += len(data)
            if self.n_drained > self.limits.most_drained_bytes:
                self.cut(NOT_DRAINED)
            self.rest()
            return
        if self.is_idle() and self.is_read:
            self.await_head()
        self.n_pending += len(data)
        super().data_received(data)
        # The parser says nothing of a header before it is whole.
        if self.head_since is not None and self.n_pending > self.limits.most_head_bytes:
            self.refuse_head()

    def await_head(self):
        """From here on bytes and seconds are a head's, if they are not already."""
        if self.head_since is None:
            self.head_since = self.loop.time()
            self.n_pending = 0

    def on_message_begin(self):
        super().on_message_begin()
        # It may begin behind a request that is still being answered.
        self.await_head()
        self.is_read = False
        self.n_head = 0
        self.n_drained = 0

    def on_url(self, url):
        super().on_url(url)
        self.count(len(url))

    def on_header(self, name, value):
        super().on_header(name, value)
        self.count(len(name) + len(value) + HEADER_LINE)

    def count(self, n):
        self.n_head += n
        if self.n_head > self.limits.most_head_bytes:
            raise TooMuch

    def on_headers_complete(self):
        self.count(len(self.parser.get_method()) + REQUEST_LINE + BLANK_LINE)
        self.head_since = None
        super().on_headers_complete()
        self.unanswered.append(self.cycle)
        if len(self.pipeline) > MOST_BEHIND:
            raise TooMuch

    def on_response_complete(self):
        self.unanswered.popleft()
        super().on_response_complete()

    def on_body(self, body):
        super().on_body(body)
        if self.cycle.response_complete:
            self.n_drained += len(body)
            if self.n_drained > self.limits.most_drained_bytes:
                raise TooMuch
            self.rest()

    def rest(self):
        """Read on after a moment: what is refused anyway must not take the time of those who are answered."""
        self.flow.pause_reading()
        self.loop.call_later(DRAINED_EVERY_S, self.read_on)

    def read_on(self):
        if not self.transport.transport.is_closing():
            self.flow.resume_reading()

    def on_message_complete(self):
        self.is_read = True
        super().on_message_complete()
        if self.is_ending:
            self.transport.transport.close()

    def send_400_response(self, msg):
        """What the parser stopped at: something too large, or no HTTP."""
        if self.n_drained > self.limits.most_drained_bytes:
            self.cut(NOT_DRAINED)
        elif self.is_ending:
            self.transport.abort()
        elif len(self.pipeline) > MOST_BEHIND:
            self.cut(TOO_MANY_BEHIND)
        elif self.n_head > self.limits.most_head_bytes:
            self.refuse_head()
        else:
            self.refuse(400, "not HTTP that can be read")

    # ---- how it is refused

    def refuse_head(self):
        self.refuse(431, f"the request's first line and headers are larger than {self.limits.most_head_bytes:,} bytes")

    def refuse(self, status, words, is_read=False):
        """Answer in place of the routes, and end; into an answer that has begun nothing can be put."""
        if not self.is_idle():
            self.cut(words)
            return
        note(status, words)
        body = json_bytes({"error": words})
        head = STATUS_LINE[status] + b"content-type: application/json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.is_deaf = True
        self.is_read = is_read
        self.head_since = None
        self.end()

    def cut(self, words):
        note("cut", words)
        self.transport.abort()

    # ---- every now and then

    def look(self):
        """Whether the client takes, or sends, what it should."""
        now = self.loop.time()
        self.timer = self.loop.call_later(LOOK_S, self.look)
        if self.head_since is not None and self.flow.read_paused:
            # What is not read cannot come.
            self.head_since = now
        if self.takes_nothing(now):
            self.cut("nothing was taken of an answer")
        elif self.head_since is not None and now - self.head_since > self.limits.head_within_s:
            self.refuse(408, f"the request's head did not come within {self.limits.head_within_s:g} s")
        elif self.is_left_unread(now):
            self.cut("a refused body did not end")

    def takes_nothing(self, now):
        """Whether of what was written nothing has gone out for too long."""
        taken = self.transport.n_taken
        if taken != self.n_taken or taken == self.transport.n_written:
            self.n_taken = taken
            self.taken_at = now
        within_s = min(LAST_S, self.limits.stalled_s) if self.is_last else self.limits.stalled_s
        return now - self.taken_at > within_s

    def is_left_unread(self, now):
        """Whether the rest of a request that has its answer does not come, or more comes behind the last one."""
        is_answered = self.is_idle() and not self.is_read and self.head_since is None
        if not (self.is_ending or is_answered):
            self.unread_since = None
            return False
        self.unread_since = self.unread_since or now
        return now - self.unread_since > self.limits.drained_within_s


def note(status, words):
    """The log line and the count of what no route saw."""
    REQUESTS.labels("unknown", "any", str(status)).inc()
    line = {"time": round(time.time(), 3), "route": "unknown", "status": status, "error": words}
    print(json.dumps(line), file=sys.stderr, flush=True)
