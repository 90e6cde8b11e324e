"""What operators see: numbers for Prometheus, and the place of an error for the log."""

import os
import traceback
from functools import lru_cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30)

REQUESTS = Counter("steward_http_requests_total", "Requests by route, method and status", ["route", "method", "status"])
HTTP_SECONDS = Histogram(
    "steward_http_request_seconds",
    "From a request's first byte read to its answer's last byte sent",
    ["route"],
    buckets=SECONDS,
)
MODEL_SECONDS = Histogram("steward_answer_seconds", "From joining the queue to the model's answer", buckets=SECONDS)
CLOSED = Counter("steward_closed_at_budget_total", "Answers that the token budget made the guarantee end")
FAILED = Counter("steward_unanswered_total", "Requests that the model or its server left without an answer", ["why"])
IN_FLIGHT = Gauge("steward_in_flight", "Requests being worked on", multiprocess_mode="livesum")
QUEUE_DEPTH = Gauge("steward_queue_depth", "Requests waiting for the model", multiprocess_mode="livesum")


@lru_cache
def verdicts(key):
    """The count of answers by verdict; its label is named as the answer's key is."""
    return Counter("steward_verdicts_total", "Answers by verdict", [key])


def text(shared):
    """All of them; of every worker process where there are several."""
    if not shared:
        return generate_latest()
    forget_the_dead(Path(shared))
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return generate_latest(registry)


def forget_the_dead(folder):
    """A killed process's requests are no longer being worked on."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid, folder)


def place_of(error):
    """Type and place of an error; its words may hold what a client sent."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}"
