"""A whole model as training, merging and engines load it."""

import os

from language_model import hub, model_folder


def load_base(config, attention=None):
    """(model, precision): bf16 where the GPU has it, else fp16; float32 on a CPU; 4-bit weights for QLoRA."""
    import torch

    cuda = torch.cuda.is_available()
    precision = (
        ("bfloat16" if config.train.bf16 and torch.cuda.is_bf16_supported() else "float16") if cuda else "float32"
    )
    place = {"device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}, "attn_implementation": attention} if cuda else {}
    how = {"dtype": getattr(torch, precision), **place, **quantization(config, precision)}
    return load_weights(config.model_id, **how), precision


def load_weights(model_id, **options):
    """A whole model from its folder or the hub, undamaged."""
    from transformers import AutoModelForCausalLM

    place = hub.local_or_hub(model_id)
    model_folder.check_weights(place)
    with hub.hub_errors_explained(model_id):
        return AutoModelForCausalLM.from_pretrained(place, **options)


def quantization(config, precision):
    if config.peft.method != "qlora":
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, precision),
        )
    }


def has_bfloat16_arithmetic():
    """Whether this CPU multiplies bfloat16 by itself; one that does not is some fifty times slower in it."""
    import torch

    able = torch.cpu.get_capabilities()
    return any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def flops_per_token(model, recomputes):
    """2 forward and 2 backward operations a frozen linear weight (no weight gradient), 2 more where the forward pass is
    computed again.
    """
    import torch

    frozen = sum(
        module.in_features * module.out_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
    )
    return (6 if recomputes else 4) * frozen


def adapted_kinds(model):
    """Module kinds that carry an adapter, with their number: {'q_proj': 36, ...}."""
    kinds = {}
    for name in model.base_model.targeted_module_names:
        kind = name.rsplit(".", 1)[-1]
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds
