"""A large file of prompts to token ids, over every core: a single one takes more than a millisecond a row.

Heavy to import (datasets): only fine_tuning.py does, once it trains.
"""

import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pyarrow
from datasets import Dataset

import dataset
import interruption
from common import WorkFailed, progress, usable_cores
from training.processes import is_main

ROWS_A_PIECE = 1000
ROWS_WORTH_PROCESSES = 20_000  # at some 700 rows/s half a minute of one core; a process takes ten seconds to start


def encode_file(path, chat, config):
    """(data set of `input_ids` and `labels`, rows left out with the reason), as dataset.encode_rows encodes them."""
    lines = dataset.prompt_lines(path)
    if len(lines) < ROWS_WORTH_PROCESSES or usable_cores() == 1:
        examples, left_out = dataset.encode_rows(dataset.prompts_in(path, lines), chat, config)
        return data_set(examples), left_out
    pieces = [(path, lines[at : at + ROWS_A_PIECE]) for at in range(0, len(lines), ROWS_A_PIECE)]
    n_workers = min(len(pieces), usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) or 1)
    # spawn: fork would copy the threads of the libraries that are loaded by now.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_workers, context, initializer=Piece.begin, initargs=(chat, config))
    try:
        return joined(pool.map(Piece.encoded, pieces), len(lines))
    except BrokenProcessPool as error:
        raise WorkFailed(
            f"{path}: a process that tokenized it was ended, perhaps for want of memory; free some, or train on fewer "
            "rows"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def joined(pieces, n_rows):
    """One data set of all pieces as they come."""
    tables = []
    left_out = []
    bar = progress(n_rows, "rows", "tokenize") if is_main() else None
    for table, too_long in pieces:
        tables.append(table)
        left_out += too_long
        if bar:
            bar.update(len(table) + len(too_long))
    if bar:
        bar.close()
    return Dataset(pyarrow.concat_tables(tables)), left_out


class Piece:
    """One worker's work on a piece of the file."""

    @classmethod
    def begin(cls, chat, config):
        interruption.leave_to_parent()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a worker already
        cls.chat = chat
        cls.config = config

    @classmethod
    def encoded(cls, piece):
        examples, left_out = dataset.encode_rows(dataset.prompts_in(*piece), cls.chat, cls.config)
        return table_of(examples), left_out


def data_set(examples):
    """What training reads of encoded rows."""
    return Dataset(table_of(examples))


def table_of(examples):
    """Token ids and labels without a Python object for each."""
    columns = {}
    for name in ("input_ids", "labels"):
        rows = [example[name] for example in examples]
        ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
        flat = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64, count=ends[-1])
        columns[name] = pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.array(flat))
    return pyarrow.table(columns)
