"""Synthetic pairs as token ids, made by worker processes while the GPU trains, and packed into steps of one size."""

import collections
import multiprocessing
import os
import zlib
from dataclasses import dataclass

import interruption
from common import to_json
from steward_mini import vocabulary
from tasks import load_task

BLOCK = 1_024  # pairs made at once by one worker
NONE, PROMPT, VERDICT, TEXT = range(4)  # what a token's successor is; each has its weight in the loss
# The attention kernel starts a thread block for every row that could be there and every stretch that a row could have:
# with room for 4,096 rows of 4,096 tokens these empty blocks took twice the time of the work itself.
LONGEST = vocabulary.CONTEXT  # tokens; the rare longer row is left out
FEWEST = 96  # tokens a row at least on average; bounds the number of rows in a step


@dataclass(frozen=True)
class Source:
    """What every worker needs to make its block."""

    task: str
    tokenizer: str  # folder
    seed: int
    recipe: dict
    dropout: float  # BPE dropout on every second prompt
    canonical: bool


class Encoder:
    """Rows to token ids, faster than a chat template a row."""

    def __init__(self, source):
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        self.source = source
        self.task = load_task(source.task)
        path = f"{source.tokenizer}/tokenizer.json"
        self.plain = Tokenizer.from_file(path)
        self.varied = Tokenizer.from_file(path)
        if source.dropout:
            self.varied.model.dropout = source.dropout
        before, self.after = vocabulary.prompt_parts(AutoTokenizer.from_pretrained(source.tokenizer))
        self.before = before.replace("SYSTEM", self.task.system_text)
        self.end = self.plain.token_to_id(vocabulary.END)
        self.synthetic = self.task.module("synthetic")

    def prompt(self, case):
        if self.source.canonical:
            case = self.task.canonical(case)
        elif zlib.crc32(repr(case).encode()) % 2:  # the generator's second record is the dirtier one
            case = self.task.hook("data", "swap")(case)
        return f"{self.before}{to_json(case)}{self.after}"

    def block(self, start, n):
        """(ids, kinds, lengths) of n pairs from row `start` of the seed's sequence, one array each."""
        import numpy as np

        recipe = self.synthetic.Recipe(**self.source.recipe)
        rows = list(self.synthetic.rows(n, self.source.seed, start, recipe))
        prompts = [self.prompt(row["input"]) for row in rows]
        half = n // 2
        encoded = [
            *self.varied.encode_batch(prompts[:half], add_special_tokens=False),
            *self.plain.encode_batch(prompts[half:], add_special_tokens=False),
        ]
        answers = self.plain.encode_batch(
            [self.task.completion(row["output"]) for row in rows], add_special_tokens=False
        )
        ids = []
        kinds = []
        lengths = []
        for prompt, answer in zip((item.ids for item in encoded), (item.ids for item in answers), strict=True):
            row = [*prompt, *answer, self.end]
            ids += row
            # A token's kind is that of what it predicts: the last prompt token predicts the fixed opening, which
            # predicts the verdict.
            kinds += [PROMPT] * len(prompt) + [VERDICT] + [TEXT] * (len(answer) - 1) + [NONE]
            lengths.append(len(row))
        return np.array(ids, dtype=np.uint16), np.array(kinds, dtype=np.uint8), np.array(lengths, dtype=np.int32)


_ENCODER = None


def start_worker(source):
    global _ENCODER
    interruption.leave_to_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _ENCODER = Encoder(source)


def worker_block(span):
    return _ENCODER.block(*span)


def blocks(source, n_pairs, n_workers):
    """The blocks in order; at most a few for each worker are made ahead."""
    spans = collections.deque((start, min(BLOCK, n_pairs - start)) for start in range(0, n_pairs, BLOCK))
    with multiprocessing.get_context("spawn").Pool(n_workers, start_worker, (source,)) as pool:
        waiting = collections.deque()
        while spans or waiting:
            while spans and len(waiting) < 6 * n_workers:
                waiting.append(pool.apply_async(worker_block, (spans.popleft(),)))
            yield waiting.popleft().get()


def steps(source, n_pairs, n_tokens, n_workers):
    """Packs of exactly n_tokens: ids, what follows each, its kind, positions, and where rows begin."""
    import numpy as np

    pack = []
    used = 0
    for ids, kinds, lengths in blocks(source, n_pairs, n_workers):
        ends = np.cumsum(lengths)
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
            if length > LONGEST:
                continue
            if used + length > n_tokens or len(pack) == n_tokens // FEWEST:
                yield packed(pack, n_tokens)
                pack = []
                used = 0
            pack.append((ids[end - length : end], kinds[end - length : end]))
            used += length
    if pack:
        yield packed(pack, n_tokens)


def packed(pack, n_tokens):
    """One step's arrays; what is left over is padding without loss, in rows no longer than any other may be."""
    import numpy as np

    lengths = [len(ids) for ids, _ in pack]
    used = sum(lengths)
    ids = np.zeros(n_tokens, np.int64)
    kinds = np.zeros(n_tokens, np.int64)
    following = np.zeros(n_tokens, np.int64)
    ids[:used] = np.concatenate([ids for ids, _ in pack])
    kinds[:used] = np.concatenate([kinds for _, kinds in pack])
    following[:-1] = ids[1:]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1], np.arange(used, n_tokens, LONGEST)])
    positions = np.arange(n_tokens) - np.repeat(starts, np.diff([*starts, n_tokens]))
    bounds = np.full(n_tokens // FEWEST + n_tokens // LONGEST + 3, n_tokens, np.int32)
    bounds[: len(starts)] = starts
    return {
        "ids": ids,
        "following": following,
        "kinds": kinds,
        "positions": positions,
        "bounds": bounds,
        "rows": len(lengths),
        "tokens": used,
    }
