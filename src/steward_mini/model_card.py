"""The model card of a model trained from scratch, written from its manifest and nothing else."""

from steward_mini.vocabulary import CONTEXT


def card(facts):
    plan = facts["plan"]
    training = facts["training"]
    held_out = facts["held_out"]
    speed = (
        f"{training['tokens_per_s']:,} tokens/s, {training['model_flops_utilisation']:.1%} of the measured matrix rate"
    )
    scores = f"accuracy {held_out['accuracy']:.4f}, macro-F1 {held_out['macro_f1']:.4f}, calibration error {held_out['ece']:.4f}"
    return f"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
tags: [entity-resolution, deduplication, crm]
---

# Steward mini

A small language model that decides whether two CRM records are one: it reads two JSON records and answers
`{{"result": "DUPLICATE|POSSIBLE|NO_MATCH", "reasoning": "one short sentence"}}`. It is the embedded default of Steward and was trained
from random weights by `src/pretrain.py`, from nothing but that project's own generator.

| | |
|---|---|
| architecture | Qwen3ForCausalLM, {facts["parameters"]:,} parameters, {plan["layers"]} layers, width {plan["width"]}, bfloat16 |
| tokenizer | its own: byte-level BPE, blind to case and accents, one token a digit |
| training data | {plan["pairs"]:,} synthetic pairs (seed {plan["seed"]}), {training["tokens"]:,} tokens, each seen once |
| training | {training["train_s"]:,.0f} s on {hardware_name(facts)}, {speed} |
| held-out synthetic pairs | {scores} (n = {held_out["rows"]:,}) |
| calibration | temperature {held_out["temperature"]:.3f}, in `calibration.json` |
| weights | SHA-256 `{facts["weights_sha256"]}` |

Held-out pairs are made of names, towns, streets and words that training never saw. Figures on public record sets are in the
project's README.

## Data

Names, towns and words come from the Python packages Faker (MIT) and nicknames (Apache-2.0), transliterated by anyascii (ISC); the
generator mistypes, reformats and rearranges them. No real person's record was used. Labels follow `docs/label_policy.md`.

## Limits

- It writes its sentence in lower case after a fixed opening, and is blind to case and accents.
- `POSSIBLE` follows the project's label policy; another policy needs fine-tuning on one's own labelled rows (`make train-steward_mini`).
- It was made for people, organisations and places. Products, citations and long free text are outside what it has seen.
- Pairs of more than {CONTEXT:,} tokens, some 500 words in both records, are refused: shorten remarks and other long texts.
- Names in two scripts (Latin against Arabic or Japanese) are matched by what else agrees; it knows transliterations of few names.
- A verdict is a recommendation: merges that cannot be undone deserve a person's look.

## Licence

MIT, weights and tokenizer included.
"""


def hardware_name(facts):
    hardware = facts.get("hardware", {})
    return str(hardware.get("gpu") or hardware.get("cpu") or "an unnamed machine")
