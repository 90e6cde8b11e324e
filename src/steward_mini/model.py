"""The network before and after its training: random weights of the plan's shape, and the folder that it is kept in."""

import math

from common import WorkFailed
from language_model import packed_attention
from steward_mini.vocabulary import CONTEXT

WEIGHTS = "model.safetensors"


def make_model(plan, tokenizer):
    """Random weights of the plan's shape."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=plan.width,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        head_dim=plan.width // plan.heads,
        intermediate_size=plan.hidden,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_bias=False,
    )
    model = Qwen3ForCausalLM(config)
    model.set_attn_implementation(packed_attention.register())
    # Twice as many layers add up in the residual stream as a block has outputs; scaled down, depth starts harmless.
    for name, weights in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights.data /= math.sqrt(2 * plan.layers)
    return model


def save(model, out):
    """bfloat16 weights under the library's own attention, so that every engine loads them."""
    import torch

    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise WorkFailed("training diverged: some weights are not finite; lower the rate: --set lr=1e-3")
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).to("cpu").save_pretrained(out)
