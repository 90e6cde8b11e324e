"""What an attack costs everyone else: python src/measure.py attack --out reports/attack.json

The service runs on loopback with the model that ships. Ordinary clients ask it in peace and then beside each attack;
attackers, clients and who asks whether the process is alive are processes of their own. Every attack is bounded in
count and time, and goes to the service that this command started and to no other address.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import interruption
import locks
from common import ROOT, UserError, WorkFailed, quiet_libraries
from language_model import model_server
from manifest import Clock, write_manifest
from measurements import task_part, verdict_task
from measurements.service import memory_mib
from tasks import DEFAULT

HOST = "127.0.0.1"
MOST_ALIVE_P99_MS = 100
MOST_MEMORY_MIB = 300
MOST_TIMES_P95 = 2.0
MOST_UNTIL_NORMAL_S = 5.0

N_CLIENTS = 8
N_TINY = 15  # clients beside the odd record: with it they are a batch of 16
N_REVIEWED = 20  # cases on the review page
REVIEWED_WITHIN_S = 300
LOOK_S = 0.1
ALIVE_EVERY_S = 0.02
HELD_BYTES = 4 * 2**20
MOST_BYTES = 16 * 2**20
N_HELD = 24
N_NEVER_READING = 3
N_LONG_ANSWER = 9_000
N_MANY = 3  # connections with bodies of millions of lists
N_MANY_BODIES = 20  # each
N_SLOW_HEADS = 50
N_CROSS_SITE = 130
N_BACKSLASHES = 400
SHOWN = "a steward is shown a case"


@dataclass
class Target:
    """The service under attack, and what it is asked."""

    port: int
    route: str
    cases: list
    seconds: float

    def client(self, timeout_s=60):
        return http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)


def main():
    args = parse_args()
    clock = Clock()
    task = verdict_task(args.task)
    cases = [row["input"] for row in task_part(task, "synthetic", "rows")(2_000, 1)]
    quiet_libraries()
    with locks.only_writer(args.out):
        found = measured(args, task, cases)
        write_manifest(args.out, clock, attacks=found, seconds=args.seconds, model=task.shipped)
    print(f"\n{table(found)}\n\nin {args.out}")
    if wrong := [problem for one in found for problem in problems(one)]:
        raise WorkFailed("; ".join(wrong))


def measured(args, task, cases):
    """What each attack cost."""
    found = []
    with served(args, cases) as (port, process), pool() as processes:
        target = Target(port, task.hook("service", "ROUTE", "/answer"), cases, args.seconds)
        until_reviewed(target)
        for name in args.only or ATTACKS:
            found.append(beside(name, target, process, processes))
            print(row_of(found[-1]), flush=True)
    return found


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--seconds", type=float, default=20, help="of peace, and of each attack (default 20)")
    parser.add_argument("--only", nargs="+", choices=list(ATTACKS), help="these attacks (default: all)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks with a verdict (default {DEFAULT})")
    args = parser.parse_args()
    if not 1 <= args.seconds <= 600:
        raise UserError(f"--seconds {args.seconds}: a number from 1 to 600 is wanted")
    return args


@contextlib.contextmanager
def served(args, cases):
    """(the service's port, its process)"""
    port = model_server.free_port()
    with tempfile.TemporaryDirectory(prefix="steward-attack-") as folder:
        reviewed = Path(folder) / "cases.jsonl"
        reviewed.write_text("".join(json.dumps(case) + "\n" for case in cases[:N_REVIEWED]), encoding="utf-8")
        command = [sys.executable, str(ROOT / "src/serve.py"), "--port", str(port), "--task", args.task]
        command += ["--review", str(reviewed), "--reviews", f"{folder}/reviews"]
        log = args.out.with_suffix(".log")
        with model_server.running(command, f"http://{HOST}:{port}/readyz", log) as process:
            yield port, process


@contextlib.contextmanager
def pool():
    """Processes for attackers, for clients, and for who asks whether the service is alive."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, context, initializer=interruption.leave_to_parent) as processes:
        # A process is started when there is work for it, and begins with seconds of imports.
        for ready in [processes.submit(time.sleep, 2) for _ in range(3)]:
            ready.result()
        yield processes


def until_reviewed(target):
    """Wait until the model has answered what is to be reviewed, as it does while nobody asks."""
    client = target.client()
    until = time.monotonic() + REVIEWED_WITHIN_S
    while time.monotonic() < until:
        client.request("GET", "/review/statistics")
        response = client.getresponse()
        body = json.loads(response.read())
        if response.status == 200 and body["progress"]["answered"] >= N_REVIEWED:
            return
        time.sleep(0.5)
    raise WorkFailed(
        f"the model had not answered {N_REVIEWED} cases for the review within {REVIEWED_WITHIN_S} s; the service's "
        "lines in the .log beside --out say why"
    )


# ---- one attack, and what it costs


def beside(name, target, process, processes):
    """The figures of clients in peace and beside an attack."""
    n_clients = N_TINY if name == "odd_record" else N_CLIENTS
    peace = watched(None, n_clients, target, process, processes)
    war = watched(name, n_clients, target, process, processes)
    return {
        "attack": name,
        "clients": n_clients,
        "peace": peace,
        "beside": war,
        "p95_times": round(war["p95_ms"] / peace["p95_ms"], 2),
        "memory_above_rest_mib": round(war["memory_mib"] - peace["memory_after_mib"], 1),
        "until_normal_s": round(until_normal(target, peace["p95_ms"]), 2),
    }


def watched(name, n_clients, target, process, processes):
    """What clients and the service's own probe saw for so many seconds, and its most memory."""
    works = [processes.submit(ask, target, n_clients), processes.submit(is_alive, target)]
    if name:
        works.append(processes.submit(ATTACKS[name], target))
    memory = memory_mib(process.pid)
    while not all(work.done() for work in works):
        memory = max(memory, memory_mib(process.pid))
        time.sleep(LOOK_S)
    asked, alive, *attack = [work.result() for work in works]
    return asked | {
        "healthz_n": len(alive),
        "healthz_p99_ms": round(share_of(alive, 0.99), 1),
        "healthz_most_ms": round(max(alive), 1),
        "memory_mib": memory,
        "memory_after_mib": memory_mib(process.pid),
        "attack_saw": attack[0] if attack else None,
    }


def share_of(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def until_normal(target, peace_p95_ms):
    """Seconds until a batch is accepted and a single request as fast as in peace."""
    start = time.monotonic()
    while time.monotonic() - start < 60:
        began = time.monotonic()
        single = posted(target.client(), target.route, target.cases[0])
        took_ms = 1000 * (time.monotonic() - began)
        many = posted(target.client(), f"{target.route}/batch", target.cases[:2])
        if single == many == 200 and took_ms <= MOST_TIMES_P95 * peace_p95_ms:
            break
        time.sleep(0.1)
    return time.monotonic() - start


def posted(client, path, value):
    """The status of an answer, read to its end."""
    client.request("POST", path, json.dumps(value), {"content-type": "application/json"})
    response = client.getresponse()
    response.read()
    return response.status


def ask(target, n_clients):
    """Ordinary clients, each with its next question as soon as it has its answer."""
    cases = target.cases
    if n_clients == N_TINY:
        cases = sorted(cases, key=lambda case: len(json.dumps(case)))[:N_TINY]
    times = []
    statuses = []
    end = time.monotonic() + target.seconds

    def client(at):
        connection = target.client()
        while time.monotonic() < end:
            start = time.monotonic()
            statuses.append(posted(connection, target.route, cases[at % len(cases)]))
            times.append(1000 * (time.monotonic() - start))
            at += n_clients

    with ThreadPoolExecutor(n_clients) as clients:
        list(clients.map(client, range(n_clients)))
    return {
        "n": len(times),
        "p50_ms": round(share_of(times, 0.5), 1),
        "p95_ms": round(share_of(times, 0.95), 1),
        "statuses": counted(statuses),
    }


def counted(statuses):
    return {str(status): statuses.count(status) for status in sorted(set(statuses), key=str)}


def is_alive(target):
    """Milliseconds of each question whether the process is alive."""
    client = target.client()
    times = []
    end = time.monotonic() + target.seconds
    while time.monotonic() < end:
        start = time.monotonic()
        client.request("GET", "/healthz")
        client.getresponse().read()
        times.append(1000 * (time.monotonic() - start))
        time.sleep(ALIVE_EVERY_S)
    return times


# ---- the attacks: each runs in a process of its own for the target's seconds, and says how it was answered


def together(n, work):
    """How n attackers at once were answered."""
    with ThreadPoolExecutor(n) as attackers:
        return counted([one for found in attackers.map(work, range(n)) for one in found])


@contextlib.contextmanager
def connected(target, small=False):
    with socket.socket() as one:
        if small:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        one.settimeout(target.seconds)
        one.connect((HOST, target.port))
        yield one


def head(path, n_body, kind="application/json"):
    return (
        f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: {kind}\r\ncontent-length: {n_body}\r\n\r\n"
    ).encode()


def status_of(one):
    """Of the answer on a connection, or how it ended without one."""
    try:
        first = one.recv(4_096)
    except TimeoutError:
        return "none"
    except ConnectionError:
        return "cut"
    return int(first.split()[1]) if first.startswith(b"HTTP/") else "cut"


def held_batches(target):
    """Batches whose last byte is withheld for half of the time, all then released at once."""
    cases = json.dumps(target.cases).encode()
    body = cases[:-1].ljust(HELD_BYTES - 1) + b"]"
    start = time.monotonic()

    def hold(_):
        with connected(target) as one:
            try:
                one.sendall(head(f"{target.route}/batch", len(body)) + body[:-1])
                time.sleep(max(0, start + target.seconds / 2 - time.monotonic()))
                one.sendall(body[-1:])
            except ConnectionError:
                pass
            found = status_of(one)
            time.sleep(max(0, start + target.seconds - time.monotonic()))
            return [found]

    return together(N_HELD, hold)


def never_reading(target):
    """Batches with long answers of which nothing is read."""
    body = b"0\n" * N_LONG_ANSWER
    start = time.monotonic()

    def stay(_):
        with connected(target, small=True) as one:
            one.sendall(head(f"{target.route}/batch", len(body), "application/x-ndjson") + body)
            time.sleep(max(0, start + target.seconds - time.monotonic()))
            return ["nothing read"]

    return together(N_NEVER_READING, stay)


def millions_of_lists(target):
    """Bodies as large as a batch may be, of empty lists."""
    body = (b"[" + b"[]," * (MOST_BYTES // 3)).ljust(MOST_BYTES - 3, b" ")[: MOST_BYTES - 3] + b"[]]"
    end = time.monotonic() + target.seconds

    def send(_):
        found = []
        while time.monotonic() < end and len(found) < N_MANY_BODIES:
            with connected(target) as one:
                with contextlib.suppress(OSError):
                    one.sendall(head(f"{target.route}/batch", len(body)) + body)
                found.append(status_of(one))
        return found

    return together(N_MANY, send)


def slow_heads(target):
    """Connections whose head comes a letter at a time."""
    end = time.monotonic() + target.seconds

    def trickle(_):
        with connected(target) as one:
            one.sendall(b"GET /healthz HTTP/1.1\r\nx: ")
            while time.monotonic() < end:
                try:
                    one.sendall(b"x")
                except ConnectionError:
                    break
                time.sleep(0.5)
            one.settimeout(0.1)
            return [status_of(one)]

    return together(N_SLOW_HEADS, trickle)


def odd_record(target):
    """One client with a case that is far longer than what the others ask."""
    client = target.client()
    case = with_text(target.cases[0], "\\" * N_BACKSLASHES)
    end = time.monotonic() + target.seconds
    found = []
    while time.monotonic() < end:
        found.append(posted(client, target.route, case))
    return counted(found)


def with_text(value, text):
    """A case whose first text is another one."""
    if isinstance(value, str):
        return text
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, str | dict | list) and inner:
            return type(value)(value.items() if isinstance(value, dict) else value) | {key: with_text(inner, text)}
    return value


def cross_site(target):
    """What a page elsewhere can make a browser send to the review; then a steward asks for a case."""
    found = []
    for at in range(N_CROSS_SITE):
        client = target.client()
        origin = {"origin": "http://elsewhere.example", "sec-fetch-site": "cross-site"}
        asked = json.dumps({"reviewer": f"stranger {at}"})
        if at % 2:
            client.request("GET", f"/review/next?reviewer=stranger{at}", headers=origin)
        else:
            client.request("POST", "/review/next", asked, origin | {"content-type": "application/json"})
        response = client.getresponse()
        response.read()
        found.append(response.status)
    client = target.client()
    client.request("POST", "/review/next", '{"reviewer": "steward"}', {"content-type": "application/json"})
    card = json.loads(client.getresponse().read()).get("card")
    return counted(found) | {SHOWN: card is not None}


ATTACKS = {
    "held_batches": held_batches,
    "never_reading": never_reading,
    "millions_of_lists": millions_of_lists,
    "slow_heads": slow_heads,
    "odd_record": odd_record,
    "cross_site": cross_site,
}


# ---- what is shown


def row_of(one):
    war = one["beside"]
    cells = [
        one["attack"].replace("_", " "),
        f"{war['healthz_p99_ms']:.0f}",
        f"{one['memory_above_rest_mib']:.0f}",
        f"{one['peace']['p95_ms']:,.0f}",
        f"{war['p95_ms']:,.0f}",
        f"{one['p95_times']:.2f}",
        f"{one['until_normal_s']:.1f}",
        ", ".join(f"{status}: {n}" for status, n in war["attack_saw"].items()),
    ]
    return f"| {' | '.join(cells)} |"


def table(found):
    titles = [
        "attack",
        "healthz p99 ms",
        "memory above rest MiB",
        "p95 in peace ms",
        "p95 beside it ms",
        "times",
        "s until normal",
        "what it got",
    ]
    rule = ["---", *["---:"] * 6, "---"]
    return "\n".join([f"| {' | '.join(titles)} |", f"| {' | '.join(rule)} |", *map(row_of, found)])


def problems(one):
    """In what an attack cost more than it may, and who was not served."""
    costs = [
        ("healthz p99 ms", one["beside"]["healthz_p99_ms"], MOST_ALIVE_P99_MS),
        ("MiB above rest", one["memory_above_rest_mib"], MOST_MEMORY_MIB),
        ("times the p95 in peace", one["p95_times"], MOST_TIMES_P95),
        ("seconds until normal", one["until_normal_s"], MOST_UNTIL_NORMAL_S),
    ]
    found = [f"{value} {words}, at most {most}" for words, value, most in costs if value > most]
    # A refusal is fast: the times alone would call a service that refuses everybody a good one.
    for when in ("peace", "beside"):
        if others := {status: n for status, n in one[when]["statuses"].items() if status != "200"}:
            refused = ", ".join(f"{status}: {n}" for status, n in others.items())
            found.append(f"of {one[when]['n']} ordinary requests ({when}) some had no answer, {refused}")
    if not one["beside"]["attack_saw"].get(SHOWN, True):
        found.append("a steward was shown no case")
    return [f"{one['attack']}: {words}" for words in found]
