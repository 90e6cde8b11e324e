"""Where an answer's verdict is decided: the one place at which its probabilities are read."""

from dataclasses import dataclass

from common import UserError


@dataclass(frozen=True)
class Branch:
    """Where the verdict is decided: the answer's fixed opening, the first token of each label after it, and what then
    stands before any free text.
    """

    opening: list[int]
    token_of: dict[str, int]
    rest_of: dict[str, list[int]]


def find_branch(chat, task):
    """The verdict's probabilities are read after `opening`, over the tokens in `token_of`."""
    probe = [{"role": "user", "content": "x"}]
    start = len(chat.prompt_ids(probe))
    answers, others = (
        {
            label: chat.ids(
                chat.full_text(probe, [{"role": "assistant", "content": task.completion(_answer(task, label, text))}])
            )[start:]
            for label in task.verdict.labels
        }
        for text in ("x", "Same.")
    )
    same = n_alike(*answers.values())
    token_of = {label: ids[same] for label, ids in answers.items()}
    if len(set(token_of.values())) < len(token_of):
        raise UserError(
            f"two of the verdicts {', '.join(task.verdict.labels)} start with the same token in this tokenizer, so one look "
            "cannot tell them apart; "
            "give the labels different first words"
        )
    rest_of = {label: ids[same + 1 : max(same + 1, n_alike(ids, others[label]))] for label, ids in answers.items()}
    return Branch(next(iter(answers.values()))[:same], token_of, rest_of)


def n_alike(*rows):
    """How many tokens all rows begin with alike."""
    return next((at for at, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))


def _answer(task, label, text):
    others = [key for key in task.answer_schema["required"] if key != task.verdict.key]
    return {task.verdict.key: label, **dict.fromkeys(others, text)}
