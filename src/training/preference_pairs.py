"""Preference pairs: what a line must be, and its token ids, whole or not at all."""

import dataclasses

import dataset
import json_lines
from common import UserError
from language_model.chat_template import IGNORED

TEXTS = ("id", "chosen", "rejected")
SOURCES = ("input", "prompt")  # a pair has one of them: a case, or the messages that a review's export made of it
NOTES = ("violation", "reason")  # what is wrong with the rejected text, by name or in words; nothing depends on it
KEYS = (*TEXTS, *SOURCES, *NOTES)


def read_pairs(path, task):
    """Every pair of a JSON Lines file as {id, prompt, chosen, rejected}; wrong lines stop the run, by number."""
    pairs = json_lines.all_checked(path, lambda found: pair_of(found, task))
    if not pairs:
        raise UserError(f"{path}: there is no preference pair in it; make it again with the step that wrote it")
    return pairs


def pair_of(found, task):
    """The pair that a line's value is; ValueError with what is wrong."""
    if not isinstance(found, dict):
        raise ValueError(f"a pair is an object, this is {type(found).__name__}")
    if wrong := problems_of(found, task):
        raise ValueError(*wrong)
    prompt = found["prompt"] if "prompt" in found else task.messages(found["input"])
    return {key: found[key] for key in TEXTS} | {"prompt": prompt}


def problems_of(pair, task):
    """What is wrong with a pair, in words; empty when it is one."""
    wrong = [f"unknown key {key!r}; a pair may have {', '.join(KEYS)}" for key in pair if key not in KEYS]
    for key in TEXTS:
        if not (isinstance(pair.get(key), str) and pair[key].strip()):
            wrong.append(f"{key!r} must be there, a text and not empty")
    if len(pair.keys() & set(SOURCES)) != 1:
        wrong.append("either 'input' or 'prompt' must be there")
    elif "input" in pair:
        wrong += task.check_case(pair["input"])
    elif not is_prompt(pair["prompt"], task):
        wrong.append("'prompt' is not made by this task with its present system text; export the pairs again")
    if not wrong and pair["chosen"] == pair["rejected"]:
        wrong.append("'chosen' and 'rejected' are the same text")
    return wrong


def is_prompt(messages, task):
    """Whether these are the messages of a prompt that the task makes today."""
    whole = isinstance(messages, list) and len(messages) == 2 and all(isinstance(one, dict) for one in messages)
    return (
        whole
        and messages[0] == {"role": "system", "content": task.system_text}
        and messages[1].keys() == {"role", "content"}
        and messages[1]["role"] == "user"
        and isinstance(messages[1]["content"], str)
    )


def encode_pairs(pairs, chat, config):
    """(pairs as token ids, pairs left out with the reason). Nothing is ever cut to fit."""
    # Nobody has to write a rejected text, so it need not fit the answer's budget.
    roomy = dataclasses.replace(config, gen=dataclasses.replace(config.gen, max_new_tokens=config.train.max_seq_len))
    chosen, too_long = encoded(pairs, "chosen", chat, config)
    rejected, too_long_too = encoded(pairs, "rejected", chat, roomy)
    control = chat.control_ids()
    examples = []
    left_out = []
    for at, pair in enumerate(pairs):
        reason = too_long.get(at) or too_long_too.get(at) or spoken_control_token(pair, chat, control)
        if not reason and chosen[at]["input_ids"] == rejected[at]["input_ids"]:
            reason = "chosen and rejected are the same tokens to this model"
        if reason:
            left_out.append({"id": pair["id"], "reason": reason})
        else:
            examples.append(example_of(chosen[at], rejected[at]))
    return examples, left_out


def encoded(pairs, side, chat, config):
    """({position: example}, {position: reason}) of one side's texts, as fine-tuning encodes its answers."""
    rows = [
        {"id": at, "prompt": pair["prompt"], "completion": [{"role": "assistant", "content": pair[side]}]}
        for at, pair in enumerate(pairs)
    ]
    examples, left_out = dataset.encode_rows(rows, chat, config)
    reasons = {row["id"]: f"{side}: {row['reason']}" for row in left_out}
    return {example["id"]: example for example in examples}, reasons


def spoken_control_token(pair, chat, control):
    """Why a pair's text would end before its end: it spells a token that ends the model's turn; None where not."""
    for side in ("chosen", "rejected"):
        if not control.isdisjoint(chat.ids(pair[side])):
            return f"{side}: the text spells a control token of this model"
    return None


def example_of(chosen, rejected):
    """The three lists of token ids that TRL's collator takes; both answers with the token that ends them."""
    n_prompt = chosen["labels"].count(IGNORED)
    return {
        "prompt_ids": chosen["input_ids"][:n_prompt],
        "chosen_ids": chosen["input_ids"][n_prompt:],
        "rejected_ids": rejected["input_ids"][n_prompt:],
    }
