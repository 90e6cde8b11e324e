"""Which optimizer a fine-tuning takes: the config's, or plain AdamW where that one cannot run."""

import importlib.util

ADAMW = "adamw"
EIGHT_BIT = "paged_adamw_8bit"
IN_TRANSFORMERS = {ADAMW: "adamw_torch_fused", EIGHT_BIT: "paged_adamw_8bit"}


def taken(wanted):
    """The optimizer that this machine takes for the one that is wanted."""
    return ADAMW if obstacle(wanted) else wanted


def obstacle(wanted):
    """What this machine lacks for an optimizer; None where it has all."""
    import torch

    if wanted == ADAMW:
        return None
    if not torch.cuda.is_available():
        return "a CUDA GPU"
    if importlib.util.find_spec("bitsandbytes") is None:
        return "the package bitsandbytes"
    return None


def replaced_words(wanted):
    """The line that says so where another optimizer is taken; None where it is the wanted one."""
    lacking = obstacle(wanted)
    return f"train.optimizer: {wanted} needs {lacking}, which is not here; training with {ADAMW}" if lacking else None
