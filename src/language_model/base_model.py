"""The base model as training and merging load it."""

import os

from language_model import hub


def load_base(config, attention=None):
    """(model, precision): bf16 where the GPU has it, else fp16; float32 on a CPU; 4-bit weights for QLoRA."""
    import torch

    cuda = torch.cuda.is_available()
    precision = (
        ("bfloat16" if config.train.bf16 and torch.cuda.is_bf16_supported() else "float16") if cuda else "float32"
    )
    place = {"device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}, "attn_implementation": attention} if cuda else {}
    return load_weights(config, dtype=getattr(torch, precision), **place, **quantization(config, precision)), precision


def load_weights(config, **options):
    from transformers import AutoModelForCausalLM

    with hub.hub_errors_explained(config.model_id):
        return AutoModelForCausalLM.from_pretrained(hub.local_or_hub(config.model_id), **options)


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
