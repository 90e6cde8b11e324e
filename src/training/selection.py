"""Which checkpoint is the best one: by the verdicts on validation rows, by exact answers, or by the loss.

A selection has `metrics(trainer)`, the scores of the present weights on the validation rows; `score(metrics, loss)`,
which is the larger the better; `least_gain`, the gain below which training does not go on; `select_by`, the name of the
metric that decides, `shown`, those that the progress line tells, and `seconds(trainer)`, what one look costs.
"""

import itertools
import time

import dataset
from language_model import chat_template, verdict_branch

TIE_BREAK = 1e-4
LEAST_LOSS_GAIN = 0.01  # at equal verdicts, a loss that falls by less is no reason to go on
LEAST_GAIN_OF_LOSS_ALONE = 1e-3
BATCH_TOKENS = 16_384
PROMPTS_TIMED = 8
ROOM_FOR_SPACES = 16  # tokens; a right answer may be written with some


def selection_for(task, chat, config, examples):
    """The selection that the task asks for, over at most train.eval_rows of the validation examples."""
    examples = list(itertools.islice(examples, config.train.eval_rows))
    if task.select_by in VerdictSelection.METRICS and task.verdict:
        return VerdictSelection(task, chat, examples)
    if task.select_by == ExactSelection.METRIC:
        return ExactSelection(task, chat, config, examples)
    return LossSelection()


class LossSelection:
    """By the loss on the validation answers alone."""

    select_by = "loss"
    shown = ()
    branch = None
    least_gain = LEAST_GAIN_OF_LOSS_ALONE

    def metrics(self, trainer):
        return {}

    def seconds(self, trainer):
        return 0.0

    def score(self, metrics, loss):
        return -loss


class VerdictSelection:
    """By the verdicts: validation prompts cut where the verdict is decided, and the right ones."""

    METRICS = shown = ("macro_f1", "accuracy")
    least_gain = TIE_BREAK * LEAST_LOSS_GAIN

    def __init__(self, task, chat, examples):
        self.select_by = task.select_by
        self.branch = verdict_branch.find_branch(chat, task)
        self.pad_id = chat.pad_id
        label_of = {token: label for label, token in self.branch.token_of.items()}
        at = len(self.branch.opening)
        self.prompts = prompts_of(examples)
        self.gold = [
            label_of[example["input_ids"][len(prompt) + at]]
            for example, prompt in zip(examples, self.prompts, strict=True)
        ]

    def metrics(self, trainer):
        from sklearn.metrics import accuracy_score, f1_score

        predicted = over_all_processes(trainer, self.prompts, self._verdicts)
        labels = sorted(set(self.gold))
        return {
            "macro_f1": f1_score(self.gold, predicted, average="macro", labels=labels, zero_division=0),
            "accuracy": accuracy_score(self.gold, predicted),
        }

    def score(self, metrics, loss):
        # Of equally right checkpoints the one that writes the likelier answers; verdicts are often right before JSON
        # and reasoning are.
        return metrics[self.select_by] - TIE_BREAK * loss

    def seconds(self, trainer):
        few = self.prompts[:: max(1, len(self.prompts) // PROMPTS_TIMED)]
        return seconds_of_all(trainer, self.prompts, few, self._verdicts)

    def _verdicts(self, model, prompts):
        shares = verdict_branch.verdict_probabilities(model, prompts, self.branch, self.pad_id)
        return [max(one, key=one.get) for one in shares]


class ExactSelection:
    """By the share of validation answers that are exactly the gold ones, written greedily and without a grammar."""

    METRIC = select_by = "exact_pct"
    shown = (METRIC,)
    branch = None
    least_gain = TIE_BREAK * LEAST_LOSS_GAIN

    def __init__(self, task, chat, config, examples):
        self.task = task
        self.chat = chat
        self.end_ids = chat_template.end_ids(chat)
        self.prompts = prompts_of(examples)
        # What is longer than every right answer is none; a model that knows nothing yet writes without an end.
        longest = max(map(dataset.n_answer_tokens, examples), default=1)
        self.most_tokens = min(config.gen.max_new_tokens, longest + ROOM_FOR_SPACES)
        self.gold = [
            self._answer(example["input_ids"][len(prompt) :])
            for example, prompt in zip(examples, self.prompts, strict=True)
        ]

    def metrics(self, trainer):
        written = over_all_processes(trainer, self.prompts, self._answers)
        n_right = sum(answer is not None and answer == gold for answer, gold in zip(written, self.gold, strict=True))
        return {self.METRIC: 100 * n_right / len(self.gold)}

    def score(self, metrics, loss):
        return metrics[self.METRIC] - TIE_BREAK * loss

    def seconds(self, trainer):
        # Many prompts at once take hardly longer to answer than few: a whole batch is timed.
        few = [self.prompts[at] for at in next(batches(self.prompts, range(len(self.prompts))))]
        return seconds_of_all(trainer, self.prompts, few, self._answers)

    def _answers(self, model, prompts):
        import torch

        ids, mask = verdict_branch.padded_left(prompts, self.chat.pad_id, model.device)
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.most_tokens,
                do_sample=False,
                eos_token_id=self.end_ids,
                pad_token_id=self.chat.pad_id,
            )
        return [self._answer(row) for row in written[:, ids.shape[1] :].tolist()]

    def _answer(self, ids):
        end = next((at for at, token in enumerate(ids) if token in self.end_ids), len(ids))
        return self.task.parsed(self.chat.tokenizer.decode(ids[:end], skip_special_tokens=False))


def prompts_of(examples):
    return [example["input_ids"][: -dataset.n_answer_tokens(example)] for example in examples]


def over_all_processes(trainer, prompts, work):
    """`work(model, prompts)` -> one result a prompt, each process on its share."""
    found = on_this_process(trainer, prompts, work)
    if trainer.accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = dict(gather_object(list(found.items())))
    return [found[at] for at in range(len(prompts))]


def on_this_process(trainer, prompts, work):
    """{position: result} of this process's share, in batches of similar length."""
    accelerator = trainer.accelerator
    model = trainer.model
    mine = range(accelerator.process_index, len(prompts), accelerator.num_processes)
    was_training = model.training
    model.eval()
    found = {}
    # The trainer lays autocast over the whole model's forward pass alone, and `generate` calls the one inside.
    with accelerator.autocast():
        for batch in batches(prompts, mine):
            found |= zip(batch, work(model, [prompts[at] for at in batch]), strict=True)
    model.train(was_training)
    return found


def seconds_of_all(trainer, prompts, few, work):
    """The time of `over_all_processes` for these prompts, from that of a few.

    Nothing is gathered: a process that runs out of memory would leave the others waiting.
    """
    start = time.perf_counter()
    on_this_process(trainer, few, work)
    return (time.perf_counter() - start) * len(prompts) / len(few)


def batches(prompts, positions):
    """Positions in batches of at most BATCH_TOKENS, longest prompts first: they show whether memory suffices."""
    waiting = sorted(positions, key=lambda at: len(prompts[at]))
    while waiting:
        n = max(1, BATCH_TOKENS // len(prompts[waiting[-1]]))
        yield waiting[-n:]
        waiting = waiting[:-n]
