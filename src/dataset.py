"""Prompts -> token ids and labels, with the loss on the answer only.

One Chat renders a model's prompts for training, check, evaluation and service, so that all see the same tokens.
"""

from common import UserError, counted, json_rows, read_lines
from language_model.chat_template import IGNORED, encode_all


def read_prompts(path):
    """The rows that src/build_prompts.py wrote; another file in its place is said to be one."""
    return prompts_in(path, prompt_lines(path))


def prompt_lines(path):
    """(line number, line) of such a file, all of them."""
    lines = list(read_lines(path))
    if not lines:
        raise UserError(f"{path}: the file is empty; make it again with src/build_prompts.py")
    return lines


def prompts_in(path, lines):
    """The rows in (line number, line) of such a file."""
    rows = json_rows(path, lines)
    for (number, _), row in zip(lines, rows, strict=True):
        if not isinstance(row, dict) or not row.keys() >= {"id", "prompt", "completion"}:
            raise UserError(
                f"{path}:{number}: not a prompt row (id, prompt, completion); src/build_prompts.py makes them from "
                "labelled rows"
            )
    return rows


def n_answer_tokens(example):
    return sum(label != IGNORED for label in example["labels"])


def encode_rows(rows, chat, config):
    """(examples that fit, rows left out with the reason). Nothing is ever cut to fit."""
    examples = []
    left_out = []
    encoded = encode_all([(row["prompt"], row["completion"]) for row in rows], chat)
    for row, example in zip(rows, encoded, strict=True):
        answer = n_answer_tokens(example)
        total = len(example["input_ids"])
        if answer > config.gen.max_new_tokens:
            left_out.append(
                {
                    "id": row["id"],
                    "reason": f"the answer takes {answer} tokens, gen.max_new_tokens is {config.gen.max_new_tokens}",
                }
            )
        elif total > config.train.max_seq_len:
            left_out.append(
                {
                    "id": row["id"],
                    "reason": f"prompt and answer take {total} tokens, train.max_seq_len is {config.train.max_seq_len}",
                }
            )
        else:
            examples.append({"id": row["id"], **example})
    return examples, left_out


def print_left_out(left_out, where, most):
    if left_out:
        print(f"{where}: too long and left out whole: {counted(len(left_out), 'row')}")
        for row in left_out[:most]:
            print(f"  {row['id']}: {row['reason']}")
        if len(left_out) > most:
            print(f"  and {len(left_out) - most:,} more")
