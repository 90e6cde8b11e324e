"""Where an answer's verdict is decided, of a task that has one: the one place at which its probabilities are read."""

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
    review: str  # the label that asks a person

    @property
    def cautious_labels(self):
        """Of equally likely labels the first is taken: the one that asks a person."""
        return sorted(self.token_of, key=lambda label: label != self.review)

    def settled(self, label):
        """The tokens that a verdict settles, itself first."""
        return [self.token_of[label], *self.rest_of[label]]


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
            f"two of the verdicts {', '.join(task.verdict.labels)} start with the same token in this tokenizer, so one "
            "look cannot tell them apart; give the labels different first words"
        )
    rest_of = {label: ids[same + 1 : max(same + 1, n_alike(ids, others[label]))] for label, ids in answers.items()}
    return Branch(next(iter(answers.values()))[:same], token_of, rest_of, task.verdict.review)


def n_alike(*rows):
    """How many tokens all rows begin with alike."""
    return next((at for at, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))


def _answer(task, label, text):
    others = [key for key in task.answer_schema["required"] if key != task.verdict.key]
    return {task.verdict.key: label, **dict.fromkeys(others, text)}


def padded_left(prompts, pad_id, device):
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def verdict_probabilities(model, prompts, branch, pad_id, temperature=1.0):
    """{label: probability} for each prompt's ids, from one forward pass that ends where the verdict is decided."""
    import torch

    ids, mask = padded_left([prompt + branch.opening for prompt in prompts], pad_id, model.device)
    with torch.inference_mode():
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=1
        ).logits[:, -1]
    return label_shares(logits, branch, temperature)


def label_shares(logits, branch, temperature):
    """Each row's {label: probability} from the logits where the verdict is decided."""
    shares = logits[:, list(branch.token_of.values())].float().div(temperature).softmax(-1)
    if not shares.isfinite().all():
        raise UserError(
            "the model's logits are not finite numbers; its weights overflow in this precision, merge it with --set "
            "merge.dtype=float32"
        )
    return [dict(zip(branch.token_of, row, strict=True)) for row in shares.tolist()]
