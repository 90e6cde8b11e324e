"""Attention over packed rows without a dense mask: the variable-length FlashAttention kernel that torch itself carries.

Masked SDPA computes every row of a bin against every other and throws the result away. Where there are no row
boundaries (validation prompts, padding) or no GPU, this is SDPA as it was.
"""

NAME = "packed"


def register():
    """Make `attn_implementation="packed"` known to transformers, with SDPA's masks for all that is not packed."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **packing):
    rows = packing.get("cu_seq_lens_q")
    longest = packing.get("max_length_q")
    window = packing.get("sliding_window")
    if rows is None or query.device.type != "cuda" or dropout or (window and window < longest):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **packing
        )
    from torch.nn.attention.varlen import varlen_attn

    shared_by = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(shared_by, dim=1) for states in (key, value))
    flat = [states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value)]  # (tokens, heads, size)
    seen = varlen_attn(*flat, rows, rows, longest, longest, scale=scaling, window_size=(-1, 0))
    return seen[None], None
