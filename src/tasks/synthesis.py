"""A task's generator run over every core: the same rows on any number of them."""

import gc
import json
import multiprocessing
import time
from pathlib import Path

import interruption
import locks
from common import UserError, counted, progress, sha256_file, shown_path, usable_cores, written_whole
from manifest import Clock, write_manifest
from tasks import load_task

BLOCK = 2_000


def make(task_name, n_rows, seed, out, pool="train", reference=None):
    """Write n_rows pairs; the same task, pool, lists, seed and row number always give the same pair, on any number of
    cores.
    """
    task = load_task(task_name)
    with locks.only_writer(out):
        write_rows(task, n_rows, seed, out, pool, reference)


def write_rows(task, n_rows, seed, out, pool, reference):
    """The rows and their manifest."""
    recipe = checked_recipe(task, pool, reference)
    clock = Clock()
    start = time.perf_counter()
    blocks = [(task.name, min(BLOCK, n_rows - at), seed, at, recipe) for at in range(0, n_rows, BLOCK)]
    n_workers = min(len(blocks), usable_cores())
    # spawn: fork would copy the threads of whatever the caller has loaded.
    with written_whole(out) as file, progress(n_rows, "pairs", "synthesize") as bar:
        if len(blocks) == 1:
            file.write(block_text(blocks[0]))
            bar.update(n_rows)
        else:
            with multiprocessing.get_context("spawn").Pool(n_workers, interruption.leave_to_parent) as workers:
                for text in workers.imap(block_text, blocks):
                    file.write(text)
                    bar.update(text.count("\n"))
    rate = n_rows / (time.perf_counter() - start)
    print(
        f"{n_rows:,} pairs in {out}: {rate:,.0f} pairs/s on {counted(n_workers, 'core')}, "
        f"{rate / n_workers:,.0f} a core",
        flush=True,
    )
    write_manifest(
        f"{out}.manifest.json",
        clock,
        task=task.name,
        rows=n_rows,
        seed=seed,
        pool=pool,
        reference=reference and shown_path(reference),
        lists=list_hashes(task, reference),
        pairs_per_s=round(rate),
        workers=n_workers,
        sha256=sha256_file(out),
    )


def checked_recipe(task, pool, reference):
    """What the rows are drawn from, after one trial row: what is wrong with it is said before any process starts."""
    synthetic = task.module("synthetic")
    if synthetic is None:
        raise UserError(
            f"--task {task.name} has no generator (src/tasks/{task.name}/synthetic.py); its rows come from elsewhere"
        )
    recipe = synthetic.Recipe(pool=pool, reference=str(reference) if reference else None)
    next(iter(synthetic.rows(1, 1, 0, recipe)))
    if reference and not found_lists(task, reference):
        raise UserError(
            f"--reference {reference}: none of the lists that are looked for is in it or below it: "
            f"{', '.join(reference_lists(task)) or 'the task reads none'}"
        )
    return recipe


def reference_lists(task):
    """The names of the files that a task's generator looks for in a folder of reference lists."""
    return task.hook("synthetic", "REFERENCE_LISTS", ())


def found_lists(task, folder):
    return sorted(path for name in reference_lists(task) for path in Path(folder).rglob(name))


def list_hashes(task, folder):
    """The lists shape every row, so the manifest names their contents."""
    return (
        {path.relative_to(folder).as_posix(): sha256_file(path) for path in found_lists(task, folder)} if folder else {}
    )


def block_text(block):
    task_name, n, seed, start, recipe = block
    gc.disable()  # rows hold no cycles; looking for some takes a twentieth of the time
    rows = load_task(task_name).module("synthetic").rows(n, seed, start, recipe)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
