"""Everything that shapes the weights of steward_mini, in one place."""

import typing
from dataclasses import dataclass, field

from common import ROOT, UserError
from config import build, override
from steward_mini.vocabulary import CONTEXT

CONFIG = ROOT / "configs" / "steward_mini.yaml"  # how the finished model is asked
AT_LEAST_1 = {"at_least": 1}


@dataclass(frozen=True)
class Plan:
    """The settings of a training from nothing; --set changes one value."""

    # 6 million were no better on records from elsewhere (LOG.md)
    pairs: int = field(default=3_200_000, metadata=AT_LEAST_1)
    seed: int = 3  # of seeds 1 to 3 the one with the lowest log loss on validation rows
    width: int = field(default=192, metadata=AT_LEAST_1)
    layers: int = field(default=14, metadata=AT_LEAST_1)
    heads: int = field(default=3, metadata=AT_LEAST_1)
    hidden: int = field(default=512, metadata=AT_LEAST_1)
    step_tokens: int = field(default=98_304, metadata={"at_least": CONTEXT})
    optimizer: typing.Literal["muon", "adamw"] = "muon"  # for the matrices inside the layers
    lr: float = field(default=6e-3, metadata={"above": 0.0})
    warmup_steps: int = field(default=100, metadata=AT_LEAST_1)
    # share of the training at the full rate; then a cosine to nothing
    flat: float = field(default=0.25, metadata={"at_least": 0.0, "below": 1.0})
    weight_decay: float = field(default=0.1, metadata={"at_least": 0.0})
    verdict_weight: float = field(default=6.0, metadata={"at_least": 0.0})
    text_weight: float = field(default=0.4, metadata={"at_least": 0.0})
    prompt_weight: float = field(default=0.12, metadata={"at_least": 0.0})
    prompt_weight_end: float = field(default=0.03, metadata={"at_least": 0.0})
    bpe_dropout: float = field(default=0.1, metadata={"at_least": 0.0, "below": 1.0})
    canonical: bool = True  # keys sorted, records in a fixed order, as every prompt has them
    variety: bool = True
    frequency: bool = True
    free_text: bool = False
    # rows that calibrate it, and as many others that judge it
    held_out: int = field(default=4_000, metadata=AT_LEAST_1)

    @property
    def recipe(self):
        return {"variety": self.variety, "frequency": self.frequency, "free_text": self.free_text}


def plan_with(settings):
    """The plan with the values of --set over its own, checked as every configuration is."""
    values = {}
    for text in settings:
        if "=" not in text:
            raise UserError(f"--set {text}: write it as key=value, for example --set seed=2")
        override(values, text)
    plan = build(Plan, values, f"--set {' '.join(settings)}")
    if plan.width % plan.heads:
        raise UserError(f"--set width={plan.width} heads={plan.heads}: width must be a multiple of heads")
    return plan
