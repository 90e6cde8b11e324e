"""What each phase of training gives, and what one setting changes: every training and evaluation behind the tables.

    python src/measure.py phases --task qod --config configs/smollm2_135m.yaml --out reports/qod/phases

The project's own steps run as processes of their own, several at once on each GPU, one at a time on a CPU. A step that
has done its work says so at once, so the same command again makes what is missing. Rows are an exception: those that
are there stay, also when the task's generator has changed; remove <out>/rows to make them again.
Metrics are left in <out>/answers and <out>/ablations, a log of each job in <out>/logs.
"""

import argparse
import contextlib
import difflib
import itertools
import os
import shlex
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import interruption
import locks
from common import UserError, WorkFailed, counted, existing_file, in_words, write_text
from config import load_config
from language_model import model_server
from manifest import Clock, write_manifest
from measurements import task_part
from measurements._phase_jobs import Plan, lines_of, shown, table
from tasks import DEFAULT, load_task

# The best of the trials with SmolLM2-135M and the task qod; other models and tasks may need others.
FINE = (
    "peft.r=8",
    "peft.dropout=0",
    "train.lr=2e-3",
    "train.epochs=1",
    "train.batch_size=64",
    "train.grad_accum=1",
    "train.schedule=cosine",
    "train.optimizer=adamw",
    "train.max_seq_len=2048",
    "train.evals_per_epoch=3",
    "train.eval_rows=200",
)
DPO = ("dpo.batch_size=8",)
SEEDS = (42, 43, 44)
N_ROWS = 300_000
AT_ONCE = 3  # one run of a small model leaves most of a GPU idle
LOOKED_EVERY_S = 0.2
DONE = ("done", "up to date")


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    plan = plan_of(args, task)
    jobs = selected(table(plan), args.only)
    if args.list:
        print("\n".join(itertools.chain.from_iterable(map(lines_of, jobs))))
        return
    existing_file(plan.by_hand)
    with locks.only_writer(plan.out):
        found = {}
        with interruption.keeping(lambda: kept_words(found, plan)):
            run_all(jobs, places(args.at_once), plan.out / "logs", found)
        write_manifest(
            plan.out / "manifest.json",
            clock,
            task=task.name,
            model=plan.model_id,
            seeds=plan.seeds,
            rows=plan.n_rows,
            only=args.only,
            jobs={job.name: found[job.name] | {"commands": without_place(shown(job), plan)} for job in jobs},
            failed=[job.name for job in jobs if found[job.name]["outcome"] == "failed"],
        )
    finish(found, plan)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the model's YAML, as configs/smollm2_135m.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows, models, metrics and logs")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the trainings (default 42 43 44)")
    parser.add_argument("--rows", type=int, default=N_ROWS, help=f"rows to fine-tune on (default {N_ROWS:,})")
    parser.add_argument(
        "--fine",
        nargs="*",
        default=FINE,
        metavar="KEY=VALUE",
        help=f"fine-tuning's settings (default {' '.join(FINE)})",
    )
    parser.add_argument(
        "--dpo",
        nargs="*",
        default=DPO,
        metavar="KEY=VALUE",
        help=f"preference tuning's settings (default {' '.join(DPO)})",
    )
    parser.add_argument("--at_once", type=int, default=AT_ONCE, help=f"jobs on each GPU (default {AT_ONCE})")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="jobs whose names begin so, with what they need")
    parser.add_argument("--list", action="store_true", help="show the jobs and their commands, and run none")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    for option in ("rows", "at_once"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} {getattr(args, option)}: at least 1")
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: each once")
    return args


def plan_of(args, task):
    """The plan that the command line asks for; its settings are checked before anything runs."""
    config = load_config(args.config, [*args.fine, *args.dpo], task.overlay)
    return Plan(
        task=task.name,
        config=args.config,
        model_id=config.model_id,
        out=args.out,
        seeds=tuple(args.seeds),
        n_rows=args.rows,
        fine=tuple(args.fine),
        dpo=tuple(args.dpo),
        **task_part(task, "measuring", "PHASES"),
    )


def without_place(commands, plan):
    """Commands for a manifest, which names no folder of the machine."""
    return [command.replace(f"{plan.out}/", "<out>/") for command in commands]


def selected(jobs, beginnings):
    """The jobs whose names begin so, and those that they need; all where none is named."""
    if not beginnings:
        return jobs
    for beginning in beginnings:
        if not any(job.name.startswith(beginning) for job in jobs):
            near = difflib.get_close_matches(beginning, [job.name for job in jobs], n=1, cutoff=0.0)
            raise UserError(f"--only {beginning}: no job's name begins so (nearest: {near[0]}); --list shows them all")
    wanted = set()
    # Behind first: what a job needs stands before it.
    for job in reversed(jobs):
        if job.name in wanted or job.name.startswith(tuple(beginnings)):
            wanted |= {job.name, *job.needs}
    return [job for job in jobs if job.name in wanted]


def places(at_once):
    """{GPU: how many jobs may begin on it}; one job at a time on the CPU, whose cores a step uses all."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    n = torch.cuda.device_count()
    names = given.split(",")[:n] if given else map(str, range(n))
    return dict.fromkeys(names, at_once) or {"": 1}


def run_all(jobs, free, logs, found):
    """Fill `found` with the outcome of each job; one that fails stops only those that need it."""
    running = {}
    stopped = threading.Event()
    with ThreadPoolExecutor(sum(free.values())) as threads:
        try:
            while len(found) < len(jobs):
                leave_out(jobs, found)
                for job in ready(jobs, found, running)[: sum(free.values())]:
                    gpu = max(free, key=free.get)
                    free[gpu] -= 1
                    running[threads.submit(outcome, job, gpu, log_of(job, logs), stopped)] = (job, gpu)
                    print(f"begun: {job.name}{f' on GPU {gpu}' if gpu else ''}", flush=True)
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    job, gpu = running.pop(future)
                    free[gpu] += 1
                    found[job.name] = future.result()
                    print(end_words(job, found[job.name], log_of(job, logs)), flush=True)
        finally:
            # Else the threads would be waited for until their steps have ended by themselves.
            stopped.set()


def ready(jobs, found, running):
    """The jobs that may begin, in the order of the table."""
    begun = {job.name for job, _ in running.values()}
    done = {name for name, facts in found.items() if facts["outcome"] in DONE}
    return [job for job in jobs if job.name not in begun | found.keys() and done.issuperset(job.needs)]


def leave_out(jobs, found):
    """Note the jobs that will never begin; a job stands behind what it needs, so one pass finds all."""
    for job in jobs:
        lacking = [name for name in job.needs if name in found and found[name]["outcome"] not in DONE]
        if lacking and job.name not in found:
            found[job.name] = {"outcome": "left out", "seconds": 0.0, "why": f"it needs {lacking[0]}"}
            print(f"left out: {job.name}, for it needs {lacking[0]}", flush=True)


def log_of(job, logs):
    return logs / f"{job.name}.log"


def end_words(job, facts, log):
    words = f"{facts['outcome']}: {job.name}, {in_words(facts['seconds'])}"
    if facts["outcome"] == "failed":
        return f"{words}: {facts['why']} (the rest is in {log})"
    return f"{words}; {facts['note']}" if "note" in facts else words


def outcome(job, gpu, log, stopped):
    """How a job ended, with its seconds and, where it failed, why."""
    start = time.monotonic()
    try:
        facts = work(job, gpu, log, stopped)
    except (UserError, WorkFailed, OSError) as error:
        facts = {"outcome": "failed", "why": str(error)}
    return facts | {"seconds": round(time.monotonic() - start, 1)}


def work(job, gpu, log, stopped):
    if job.is_there and job.is_there():
        return {"outcome": "up to date"}
    for cut in job.cuts:
        first_rows(*cut)
    for command in job.commands:
        begun_at = log.stat().st_size if log.is_file() else 0
        code = child_code(command, gpu, log, stopped)
        if code and only_the_merge_failed(job, log, begun_at):
            return {"outcome": "done", "note": "the adapter is whole, its merge failed and is not needed"}
        if code:
            raise WorkFailed(f"exit code {code}, {last_line(log)}")
    lacking = [path for path in job.outputs if not path.is_file()]
    if lacking:
        raise WorkFailed(f"it ended well and left no {lacking[0]}")
    return {"outcome": "done"}


def first_rows(source, target, n_rows):
    """A file of the first rows of another; one that holds them is left alone, with its time."""
    with open(source, encoding="utf-8", newline="\n") as lines:
        rows = list(itertools.islice(lines, n_rows))
    if n_rows and len(rows) < n_rows:
        raise WorkFailed(f"{source}: {counted(len(rows), 'row')}, and {n_rows:,} are wanted; take more with --rows")
    text = "".join(rows)
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        write_text(target, text)


def child_code(command, gpu, log, stopped):
    """The exit code of a step whose output goes to the end of the log; a stop of this process ends it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
    with open(log, "a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        # A session of its own: Ctrl-C reaches it through us, and what it starts ends with it.
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    with interruption.with_group(child):
        try:
            while not stopped.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(LOOKED_EVERY_S)
        finally:
            if child.poll() is None:
                model_server.stop(child)
    raise WorkFailed("stopped")


def only_the_merge_failed(job, log, begun_at):
    """Whether the step came to the merge, which it begins with a whole adapter; an older one might lie there too."""
    if not job.adapter or not (job.adapter / "manifest.json").is_file():
        return False
    with open(log, "rb") as file:
        file.seek(begun_at)
        return f"merging {job.adapter}\n".encode() in file.read()


def last_line(log):
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def kept_words(found, plan):
    n_done = sum(facts["outcome"] in DONE for facts in found.values())
    return f"{counted(n_done, 'job')} done in {plan.out}" if n_done else ""


def finish(found, plan):
    """The last line: how many jobs ended how; a WorkFailed where one failed."""
    counts = Counter(facts["outcome"] for facts in found.values())
    words = ", ".join(f"{n:,} {how}" for how, n in counts.items())
    failed = [f"{name}: {facts['why']}" for name, facts in found.items() if facts["outcome"] == "failed"]
    if failed:
        raise WorkFailed(f"{words}; {'; '.join(failed)}. The logs are in {plan.out / 'logs'}")
    print(f"{words}; in {plan.out}")
