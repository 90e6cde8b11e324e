"""Memory of a process that answers for days: bounded, not growing with every shape of batch that it has seen."""

import asyncio
import ctypes
import os

SHAPES_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
SHAPES = "256"  # prepared by oneDNN and kept; its own 1,024 take some hundred MB more and are at most 4 % faster
EVERY_S = 10.0


def keep_few_shapes():
    """To be called before the model's first batch."""
    os.environ.setdefault(SHAPES_VARIABLE, SHAPES)


async def give_back():
    """Give freed memory back to the system every few seconds; glibc's allocator would keep it, others do it by
    themselves.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim:
        await asyncio.sleep(EVERY_S)
        await asyncio.to_thread(trim, 0)
