"""Write a model folder as a GGUF file, for --backend llama_cpp: python src/export_gguf.py --model_path
models/steward-mini --out models/steward-mini.gguf

The engine feeds token ids that the model's own tokenizer made, so the vocabulary is there for llama.cpp to load and
never splits text. For llama.cpp's other programs, which split text themselves, use its convert_hf_to_gguf.py with a
model whose tokenizer it knows.
"""

import argparse
import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import locks
from common import UserError, quiet_libraries, run, sha256_file, shown_path
from constrained_decode.llama_cpp import WEIGHTS_KEY, library
from language_model import hub, model_folder
from manifest import Clock, write_manifest

# llama.cpp reads Mistral's weights as Llama's.
ARCHITECTURES = {"Qwen3ForCausalLM": "QWEN3", "LlamaForCausalLM": "LLAMA", "MistralForCausalLM": "LLAMA"}
FILE_TYPES = {"f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "f32": "ALL_F32"}
CONVERTER = "llama.cpp's own convert_hf_to_gguf.py"
ROPE_FREQS = "rope_freqs.weight"


def main():
    args = parse_args()
    quiet_libraries()
    with locks.only_writer(args.out):
        export(args.model_path, args.out, args.dtype)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="model folder")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file to write; the engine looks for <model folder>.gguf and <model folder>/model.gguf",
    )
    parser.add_argument(
        "--dtype",
        choices=list(FILE_TYPES),
        default="f16",
        help="how matrices are kept (default f16); vectors are always float32",
    )
    args = parser.parse_args()
    if args.out.suffix != ".gguf":
        raise UserError(f"--out {args.out}: a GGUF file's name ends with .gguf")
    return args


def export(model_path, out, dtype):
    """The file, and beside it the manifest that says which weights it holds."""
    from transformers import AutoConfig

    clock = Clock()
    gguf = library("gguf")
    folder = Path(hub.local_or_hub(model_path))
    if not folder.is_dir():
        raise UserError(
            f"{model_path}: not a folder; only a model in a folder is exported, fetch it with: hf download "
            f"{model_path} --local-dir <folder>"
        )
    model_folder.check_whole(folder)
    with hub.hub_errors_explained(model_path):
        config = AutoConfig.from_pretrained(folder)
    check_supported(config, model_path)
    tensors = tensors_of(gguf, folder, config, dtype)
    weights = model_folder.weights_sha256(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_disk(out, tensors)
    manifest = out.with_suffix(".manifest.json")
    with put_in_place(out, manifest) as part:
        write(gguf, part, config, hub.load_tokenizer(folder), tensors, weights, dtype)
    write_manifest(
        manifest,
        clock,
        model=shown_path(folder),
        architecture=config.architectures[0],
        dtype=dtype,
        tensors=len(tensors),
        weights_sha256=weights,
        gguf_sha256=sha256_file(out),
        gguf_package=gguf_version(),
    )
    print(f"{len(tensors):,} tensors of {shown_path(folder)} in {out} ({out.stat().st_size / 1e6:,.1f} MB, {dtype})")


@contextlib.contextmanager
def put_in_place(out, manifest):
    """A path to write to, which becomes `out` when it is whole; until then an older file stays as it is."""
    part = out.with_name(out.name + ".part")
    try:
        yield part
        manifest.unlink(missing_ok=True)
        os.replace(part, out)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.errno:
            # numpy, which writes the arrays, says how much was written and not why.
            raise UserError(
                f"{out}: could not be written whole ({error}); free some space or choose another --out, then run again"
            ) from error
        raise


def check_supported(config, model_path):
    """llama.cpp would load some models that it then computes otherwise than they were trained."""
    name = (config.architectures or ["none named"])[0]
    if name not in ARCHITECTURES:
        raise UserError(f"{model_path}: {name} is not exported here, only {', '.join(ARCHITECTURES)}; use {CONVERTER}")
    rope = config.rope_parameters
    # Scalings that only slow frequencies down become a tensor of factors, which llama.cpp reads for Llama alone.
    scalings = ("default", "llama3") if ARCHITECTURES[name] == "LLAMA" else ("default",)
    odd = [
        words
        for words, found in (
            ("a sliding window", config.sliding_window if hasattr(config, "sliding_window") else None),
            ("biases in attention", getattr(config, "attention_bias", False)),
            ("biases in its MLP", getattr(config, "mlp_bias", False)),
            (f"the activation {config.hidden_act}", config.hidden_act != "silu"),
            (f"the rope scaling {rope['rope_type']}", rope["rope_type"] not in scalings),
            ("rotary positions on a part of each head", rope.get("partial_rotary_factor", 1.0) != 1.0),
        )
        if found
    ]
    if odd:
        raise UserError(f"{model_path}: this {name} has {', '.join(odd)}, which is not exported here; use {CONVERTER}")


@dataclass(frozen=True)
class Tensor:
    """One array of the file, read when it is written."""

    name: str
    shape: tuple
    kind: str  # f16, bf16 or f32
    read: object  # () -> the torch tensor

    @property
    def n_bytes(self):
        import math

        return math.prod(self.shape) * (4 if self.kind == "f32" else 2)


def tensors_of(gguf, folder, config, dtype):
    """Every array under llama.cpp's name, in its order of rows."""
    from safetensors import safe_open

    architecture = ARCHITECTURES[config.architectures[0]]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], config.num_hidden_layers)
    found = []
    for file in model_folder.weight_files(folder):
        opened = safe_open(file, "pt")
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            target = names.get_name(name, try_suffixes=(".weight",))
            if not target:
                raise UserError(f"{file}: llama.cpp's {architecture} has no place for '{name}'; use {CONVERTER}")
            shape = tuple(opened.get_slice(name).get_shape())
            found.append(
                Tensor(
                    target,
                    shape,
                    dtype if len(shape) > 1 else "f32",
                    reader(opened, name, config if architecture == "LLAMA" else None),
                )
            )
    return found + rope_factors(config)


def reader(opened, name, llama_config):
    """Reads one tensor; llama.cpp's Llama rotates neighbouring values where transformers rotates halves, so its rows
    are re-ordered.
    """
    heads = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    key = heads.get(".".join(name.split(".")[-2:]))
    if llama_config is None or key is None:
        return lambda: opened.get_tensor(name)
    return lambda: with_pairs_together(opened.get_tensor(name), getattr(llama_config, key))


def with_pairs_together(weights, n_heads):
    rows, columns = weights.shape
    return weights.reshape(n_heads, 2, rows // n_heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def rope_factors(config):
    """What each rotary frequency is divided by, in a model for longer texts than it was first trained on."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        return []
    import torch

    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    plain = rope["rope_theta"] ** -(torch.arange(len(scaled)) / len(scaled))
    return [Tensor(ROPE_FREQS, tuple(scaled.shape), "f32", lambda: plain / scaled)]


def check_disk(out, tensors):
    needed = sum(tensor.n_bytes for tensor in tensors)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise UserError(
            f"{out.parent}: the file takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room or choose "
            "another --out"
        )


def write(gguf, path, config, tokenizer, tensors, weights, dtype):
    """Header, vocabulary, then one array at a time, so that memory holds only one."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[ARCHITECTURES[config.architectures[0]]]])
    try:
        add_shape(writer, config)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
        writer.add_string(WEIGHTS_KEY, weights)
        add_vocabulary(gguf, writer, tokenizer, config.vocab_size)
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.name,
                tensor.shape,
                None,
                tensor.n_bytes,
                raw_dtype=gguf.GGMLQuantizationType[tensor.kind.upper()],
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(array(tensor))
    finally:
        writer.close()


def add_shape(writer, config):
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def add_vocabulary(gguf, writer, tokenizer, n_tokens):
    """Tokens and merges as llama.cpp loads them; ids without a token, which fill up the embedding, get a name of their
    own.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"{tokenizer.name_or_path}: a {model['type']} vocabulary is not exported here, only BPE; use {CONVERTER}"
        )
    names = [f"[UNUSED{id}]" for id in range(n_tokens)]
    kinds = [gguf.TokenType.UNUSED] * n_tokens
    for token, id in tokenizer.get_vocab().items():
        if id < n_tokens:
            names[id] = token
            kinds[id] = gguf.TokenType.NORMAL
    for id, token in tokenizer.added_tokens_decoder.items():
        if id < n_tokens:
            kinds[id] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)


def array(tensor):
    """The numbers as the file holds them; bfloat16, which numpy has not, as the integers of the same bits."""
    import torch

    values = tensor.read()
    made = values.to({"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[tensor.kind]).contiguous()
    if not made.isfinite().all():
        raise UserError(
            f"'{tensor.name}': some weights are not finite numbers in {tensor.kind}; give --dtype bf16 or f32"
        )
    return made.view(torch.int16).numpy() if tensor.kind == "bf16" else made.numpy()


def gguf_version():
    from importlib.metadata import version

    return version("gguf")


if __name__ == "__main__":
    run(main)
