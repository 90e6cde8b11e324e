"""In-process Transformers: the plain engine, batched `generate` with the model's own template and end tokens."""

import time

import calibrate
import dataset
from common import UserError
from constrained_decode import Answer


def load(model_path, task, config, batch_size=None):
    import torch
    from transformers import AutoModelForCausalLM

    folder = dataset.local_or_hub(model_path)
    chat = dataset.pinned_chat(dataset.load_tokenizer(folder), config.chat)
    with dataset.hub_errors_explained(model_path):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    cuda = torch.cuda.is_available()
    return Engine(model.to("cuda" if cuda else "cpu").eval(), chat, task, config.gen, batch_size or (64 if cuda else 16), calibrate.stored_temperature(folder))


class Engine:
    def __init__(self, model, chat, task, gen, batch_size, temperature=1.0):
        self.model, self.chat, self.gen, self.batch_size, self.temperature = model, chat, gen, batch_size, temperature
        self.branch, self.end_ids = dataset.find_branch(chat, task), dataset.end_ids(chat)
        self.facts = {"precision": str(model.dtype).removeprefix("torch."), "device": model.device.type, "batch_size": batch_size,
                      "decoding": "unconstrained", "attention": model.config._attn_implementation,
                      "calibration_temperature": temperature}

    def answers(self, conversations):
        import torch

        torch.manual_seed(0)
        for positions, prompts in self._batches(conversations):
            start = time.perf_counter()
            generated = self._generate(prompts)
            probabilities = verdict_probabilities(self.model, prompts, self.branch, self.chat.pad_id, self.temperature)
            seconds = (time.perf_counter() - start) / len(prompts)
            for position, prompt, ids, shares in zip(positions, prompts, generated, probabilities, strict=True):
                yield position, self._answer(prompt, ids, shares, seconds)

    def verdicts(self, conversations):
        for positions, prompts in self._batches(conversations):
            yield from zip(positions, verdict_probabilities(self.model, prompts, self.branch, self.chat.pad_id, self.temperature), strict=True)

    def _batches(self, conversations):
        """Longest first: the first batch shows whether memory suffices, and little is padded."""
        prompts = [self.chat.prompt_ids(messages) for messages in conversations]
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        for start in range(0, len(order), self.batch_size):
            positions = order[start:start + self.batch_size]
            yield positions, [prompts[at] for at in positions]

    def _generate(self, prompts):
        import torch

        ids, mask = padded_left(prompts, self.chat.pad_id, self.model.device)
        greedy, sampled = {"do_sample": False}, {"do_sample": True, "temperature": self.gen.temperature, "top_p": self.gen.top_p, "top_k": 0}
        with torch.inference_mode():
            output = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=self.gen.max_new_tokens,
                                         eos_token_id=self.end_ids, pad_token_id=self.chat.pad_id, **(sampled if self.gen.temperature else greedy))
        return output[:, ids.shape[1]:].tolist()

    def _answer(self, prompt, ids, probabilities, seconds):
        end = next((at for at, token in enumerate(ids) if token in self.end_ids), None)
        text = self.chat.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Answer(text, "length" if end is None else "stop", len(prompt), len(ids) if end is None else end + 1, probabilities, seconds)


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
        logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=1).logits[:, -1]
    shares = logits[:, list(branch.token_of.values())].float().div(temperature).softmax(-1)
    if not shares.isfinite().all():
        raise UserError("the model's logits are not finite numbers; its weights overflow in this precision, merge it with --set merge.dtype=float32")
    return [dict(zip(branch.token_of, row, strict=True)) for row in shares.tolist()]
