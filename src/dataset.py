"""Prompts -> token ids and labels, with the loss on the answer only.

One Chat renders a model's prompts for training, check, evaluation and service, so that all see the same tokens.
"""

import contextlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, UserError, explain_no_space, read_jsonl

IGNORED = -100


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its template pinned: no clock in it, and the system text where the model will read it."""

    tokenizer: object
    system_in_user: bool

    def prompt_text(self, messages, **variables):
        return self._render(self._folded(messages), add_generation_prompt=True, **variables)

    def full_text(self, messages, completion):
        return self._render(self._folded(messages) + completion, add_generation_prompt=False)

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt_ids(self, messages):
        return self.prompts_ids([messages])[0]

    def prompts_ids(self, conversations):
        """Of many at once, which the tokenizer shares out over the processor's cores."""
        return self.ids([self.prompt_text(messages) for messages in conversations]) if conversations else []

    def _render(self, messages, **options):
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)

    def _folded(self, messages):
        """Templates that lose a system message in training get it at the head of the first user turn, where they would write it."""
        if not self.system_in_user or messages[0]["role"] != "system":
            return messages
        system, user, *rest = messages
        return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]

    @property
    def pad_id(self):
        """Fills up batches; masked everywhere, so any token serves where the tokenizer names none."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.tokenizer.eos_token_id

    def control_ids(self):
        """Ids that steer the model and must never come from a record."""
        added = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))


def load_chat(config):
    """The config's tokenizer, its template pinned."""
    return pinned_chat(load_tokenizer(config.model_id), config.chat)


def pinned_chat(tokenizer, chat):
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; choose an instruct checkpoint as model_id")
    tokenizer.chat_template = pinned_template(tokenizer.chat_template, chat.template_vars)
    return Chat(tokenizer, chat.system_in_user)


def pinned_template(template, variables):
    """The template with variables set inside it, so that every server that loads it renders the same prompt."""
    head = "".join("{%- set " + name + " = '" + value.replace("\\", "\\\\").replace("'", "\\'") + "' %}" for name, value in variables.items())
    return template if template.startswith(head) else head + template


def load_tokenizer(model_id):
    from transformers import AutoTokenizer

    place = str(model_id) if (Path(model_id) / "tokenizer_config.json").is_file() else local_or_hub(model_id)
    if Path(place).is_dir() and not any(path.name.startswith(("token", "vocab", "tekken")) for path in Path(place).iterdir()):
        raise UserError(f"{model_id}: this folder holds no tokenizer; copy the tokenizer files of its base model into it")
    with hub_errors_explained(model_id):
        ask_hub_once(place)
        return AutoTokenizer.from_pretrained(place)


def ask_hub_once(place):
    """Fail at once where the hub does not answer: for a file it has not got, its client tries eleven times in a minute."""
    import huggingface_hub as hub

    if not Path(place).is_dir() and not isinstance(hub.try_to_load_from_cache(place, "config.json"), str):
        hub.get_hf_file_metadata(hub.hf_hub_url(place, "config.json"), timeout=10)


def local_or_hub(model_id):
    """A folder of the project or a hub name; a path that is neither is said at once."""
    for path in (Path(model_id), ROOT / model_id):
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise UserError(f"{model_id}: this folder holds no model (no config.json); train it first or give another model")
            return str(path)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_id) or model_id.split("/")[0] in ("outputs", "models", "..", "."):
        raise UserError(f"{model_id}: no such model folder; make it with make train-<model>, or give a hub name like Qwen/Qwen3-4B-Instruct-2507")
    return model_id


@contextlib.contextmanager
def hub_errors_explained(model_id):
    """Missing, gated and unreachable checkpoints become one sentence with the next step."""
    import huggingface_hub.errors as hub

    try:
        yield
    except (UserError, RuntimeError, MemoryError):
        raise
    except Exception as error:
        if explain_no_space(error):
            raise
        causes = chain(error)
        text = " ".join(str(cause) for cause in causes)
        if any(isinstance(cause, hub.GatedRepoError) for cause in causes) or "trying to access a gated repo" in text:
            raise UserError(f"{model_id}: access to this model is gated; accept its licence at https://huggingface.co/{model_id}, "
                            "then run: hf auth login") from error
        if any(isinstance(cause, hub.RepositoryNotFoundError) for cause in causes) or "not a valid model identifier" in text:
            raise UserError(f"{model_id}: no such model on the hub, or a private one; check model_id, or run: hf auth login") from error
        unreachable = hub.LocalEntryNotFoundError | ConnectionError | TimeoutError | socket.gaierror
        if any(isinstance(cause, unreachable) for cause in causes) or "connect" in text.lower():
            offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
            raise UserError(f"{model_id}: not on this machine, and the hub cannot be reached"
                            + (" (HF_HUB_OFFLINE is set)" if offline else "")
                            + "; check the network, or give a local folder as model_id") from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{model_id}: could not be loaded ({reason}); check model_id or the folder's files") from error


def chain(error):
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def encode(prompt, completion, chat):
    """input_ids and labels of one example, cut after the token that ends the answer's turn."""
    prompt_text, full_text = chat.prompt_text(prompt), chat.full_text(prompt, completion)
    if not full_text.startswith(prompt_text):
        raise UserError("the chat template renders the prompt differently when the answer follows (a system message lost in training, "
                        "for example); set chat.system_in_user: true in the config")
    prompt_ids, ids = chat.ids(prompt_text), chat.ids(full_text)
    if ids[:len(prompt_ids)] != prompt_ids:
        raise UserError("the tokenizer splits the prompt differently when the answer follows, so what is trained is not what is served; "
                        "choose a checkpoint whose template ends the prompt with a control token or a line break")
    control = chat.control_ids()
    end = next((at for at in range(len(prompt_ids), len(ids)) if ids[at] in control), None)
    if end is None:
        raise UserError("the chat template writes no end token after the answer, so the model would never learn to stop; choose an instruct checkpoint")
    ids = ids[:end + 1]
    return {"input_ids": ids, "labels": [IGNORED] * len(prompt_ids) + ids[len(prompt_ids):]}


def read_prompts(path):
    """The rows that src/build_prompts.py wrote; another file in its place is said to be one."""
    rows = read_jsonl(path)
    if not rows:
        raise UserError(f"{path}: the file is empty; make it again with src/build_prompts.py")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.keys() >= {"id", "prompt", "completion"}:
            raise UserError(f"{path}:{number}: not a prompt row (id, prompt, completion); src/build_prompts.py makes them from labelled rows")
    return rows


def n_answer_tokens(example):
    return sum(label != IGNORED for label in example["labels"])


def encode_rows(rows, chat, config):
    """(examples that fit, rows left out with the reason). Nothing is ever cut to fit."""
    examples, left_out = [], []
    for row in rows:
        example = encode(row["prompt"], row["completion"], chat)
        answer, total = n_answer_tokens(example), len(example["input_ids"])
        if answer > config.gen.max_new_tokens:
            left_out.append({"id": row["id"], "reason": f"the answer takes {answer} tokens, gen.max_new_tokens is {config.gen.max_new_tokens}"})
        elif total > config.train.max_seq_len:
            left_out.append({"id": row["id"], "reason": f"prompt and answer take {total} tokens, train.max_seq_len is {config.train.max_seq_len}"})
        else:
            examples.append({"id": row["id"], **example})
    return examples, left_out


def print_left_out(left_out, where, most):
    if left_out:
        print(f"{where}: {len(left_out):,} rows do not fit and are left out whole:")
        for row in left_out[:most]:
            print(f"  {row['id']}: {row['reason']}")
        if len(left_out) > most:
            print(f"  and {len(left_out) - most:,} more")


def end_ids(chat):
    """The tokens that may end an answer: the template's own end of turn first, then the tokenizer's."""
    example = encode([{"role": "user", "content": "x"}], [{"role": "assistant", "content": "{}"}], chat)
    return list(dict.fromkeys([example["input_ids"][-1], chat.tokenizer.eos_token_id]))


@dataclass(frozen=True)
class Branch:
    """Where the verdict is decided: the answer's fixed opening, the first token of each label after it, and what then stands before any free text."""

    opening: list[int]
    token_of: dict[str, int]
    rest_of: dict[str, list[int]]


def find_branch(chat, task):
    """The verdict's probabilities are read after `opening`, over the tokens in `token_of`."""
    probe = [{"role": "user", "content": "x"}]
    start = len(chat.prompt_ids(probe))
    answers, others = ({label: chat.ids(chat.full_text(probe, [{"role": "assistant", "content": task.completion(_answer(task, label, text))}]))[start:]
                        for label in task.labels} for text in ("x", "Same."))
    same = n_alike(*answers.values())
    token_of = {label: ids[same] for label, ids in answers.items()}
    if len(set(token_of.values())) < len(token_of):
        raise UserError(f"two of the verdicts {', '.join(task.labels)} start with the same token in this tokenizer, so one look cannot tell them apart; "
                        "give the labels different first words")
    rest_of = {label: ids[same + 1:max(same + 1, n_alike(ids, others[label]))] for label, ids in answers.items()}
    return Branch(next(iter(answers.values()))[:same], token_of, rest_of)


def n_alike(*rows):
    """How many tokens all rows begin with alike."""
    return next((at for at, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))


def _answer(task, label, text):
    others = [key for key in task.answer_schema["required"] if key != task.label_key]
    return {task.label_key: label, **dict.fromkeys(others, text)}
