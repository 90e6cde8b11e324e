"""Whether a sentence names the part of the kettle that the gold one names."""

PARTS = ("lid", "base", "filter", "switch")
AGGREGATES = {"part_pct": ("answers that name the part that the gold answer names", "named", "asked")}


def score(row, answer):
    part = next((part for part in PARTS if part in row["output"]), None)
    return {"asked": int(part is not None), "named": int(part is not None and answer is not None and part in answer)}
