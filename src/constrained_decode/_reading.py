"""A prompt read in one pass, up to where its verdict is decided, and whether a model can read so much.

Prompts are padded on their right, so no mask is needed: nobody attends to padding.
"""

from common import UserError


def read_prompts(model, prompts, n_last):
    """The logits of each prompt's last n_last places, from one pass."""
    ids, lengths = padded(prompts, model.device)
    return read(model, ids, lengths, n_last)


def padded(prompts, device, n_rows=0, width=0):
    """Prompts' ids and lengths, repeated where more rows or a wider table are wanted; on their way to a GPU that may
    still be busy.
    """
    import torch

    width = max(width, *map(len, prompts))
    prompts = prompts + prompts[-1:] * (n_rows - len(prompts))
    tables = [prompt + prompt[-1:] * (width - len(prompt)) for prompt in prompts], [len(prompt) for prompt in prompts]
    return [torch.tensor(table, pin_memory=device.type == "cuda").to(device, non_blocking=True) for table in tables]


def read(model, ids, lengths, n_last, cache=None):
    import torch

    hidden = model.base_model(
        input_ids=ids,
        position_ids=torch.arange(ids.shape[1], device=ids.device)[None],
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state
    last = lengths[:, None] - n_last + torch.arange(n_last, device=ids.device)
    return model.get_output_embeddings()(hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1])))


def has_plain_head(model):
    """Whether logits are the output layer's of the last hidden state, with nothing (a scale, a cap) in between."""
    import torch

    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        expected, found = (
            logits[0, -1].float() for logits in (model(input_ids=ids).logits, read_prompts(model, [[0, 0]], 1))
        )
    # Weights that are no numbers are found out where verdicts are read.
    return torch.allclose(found, expected, atol=0.02 * expected.abs().amax().item(), rtol=0.0, equal_nan=True)


def check_lengths(prompts, max_new_tokens, most):
    """A model asked beyond what it was made to read answers at random; refused before anything is answered."""
    too_long = [at for at, prompt in enumerate(prompts, 1) if len(prompt) + max_new_tokens > (most or float("inf"))]
    if too_long and len(prompts) == 1:
        raise UserError(
            f"too long: the prompt takes {len(prompts[0]):,} tokens and an answer {max_new_tokens}, the model reads "
            f"{most:,}; shorten the input"
        )
    if too_long:
        longest = max(len(prompts[at - 1]) for at in too_long)
        raise UserError(
            f"{len(too_long):,} of {len(prompts):,} prompts are too long: the longest takes {longest:,} tokens and an "
            f"answer {max_new_tokens}, the model reads {most:,}; shorten the input of row "
            f"{', '.join(map(str, too_long[:10]))}{' and others' if len(too_long) > 10 else ''}"
        )
