"""The four model families as their tokenizers and architectures really are, small enough for a test.

Qwen, Llama and Phi: byte-level BPE learned from our own prompts, with each family's real control tokens and their real
flags. Mistral: the real v3 tokenizer, which ships in mistral_common. Templates of Qwen and Llama come from trl as they
are.
"""

from functools import cache
from importlib.resources import files

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaTokenizer, MistralConfig, Phi3Config, PreTrainedTokenizerFast, Qwen3Config
from transformers.tokenization_utils_base import generate_merges

from common import ROOT
from config import load_config
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

NAMES = ("phi4mini", "qwen3_4b", "llama3_2_3b", "mistral7b")
# Control tokens by family; a trailing ~ marks one that swallows the white space after it, a trailing = one that is not
# flagged as special.
CONTROL = {
    "phi4mini": "<|endoftext|> <|endofprompt|> <|assistant|>~ <|end|>~ <|user|>~ <|system|>~ <|tool|> <|/tool|> "
    "<|tool_call|> <|/tool_call|>",
    "qwen3_4b": "<|endoftext|> <|im_start|> <|im_end|> <think>= </think>= <tool_call>= </tool_call>=",
    "llama3_2_3b": "<|begin_of_text|> <|end_of_text|> <|finetune_right_pad_id|> <|start_header_id|> <|end_header_id|> "
    "<|eom_id|> <|eot_id|> "
    "<|python_tag|>",
    "mistral7b": "<s> </s> <unk> [INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS]",
}
NAMED = {
    "phi4mini": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "qwen3_4b": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "llama3_2_3b": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
}
END = {"phi4mini": "<|end|>", "qwen3_4b": "<|im_end|>", "llama3_2_3b": "<|eot_id|>", "mistral7b": "</s>"}
# Behaves like the published one: no line breaks between turns, and a finished conversation ends with the end-of-text
# token.
PHI_TEMPLATE = (
    "{%- for message in messages %}{{- '<|' + message.role + '|>' + message.content + '<|end|>' }}{%- endfor %}"
    "{{- '<|assistant|>' if add_generation_prompt else eos_token }}"
)
# Behaves like the published one, its defect included: the system text is written only where the user turn comes last.
MISTRAL_TEMPLATE = (
    "{{- bos_token }}{%- set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{- '[INST] ' + (system if loop.last else '') + message.content + '[/INST]' }}"
    "{%- elif message.role == 'assistant' %}{{- ' ' + message.content + eos_token }}{%- endif %}{%- endfor %}"
)
LONG_FACTORS = [1.0 + at for at in range(48)]
ARCHITECTURES = {
    "phi4mini": lambda: Phi3Config(
        vocab_size=200064,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=24,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_theta=1e4,
        partial_rotary_factor=0.75,
        rope_scaling={"type": "longrope", "long_factor": LONG_FACTORS, "short_factor": [1.0] * 48},
        sliding_window=262144,
        bos_token_id=199999,
        eos_token_id=199999,
        pad_token_id=199999,
    ),
    "phi3mini": lambda: Phi3Config(
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_theta=1e4,
        sliding_window=2047,
        bos_token_id=1,
        eos_token_id=32000,
        pad_token_id=32000,
    ),
    "qwen3_4b": lambda: Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=262144,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_theta=5e6,
        bos_token_id=151643,
        eos_token_id=151645,
    ),
    "llama3_2_3b": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_theta=5e5,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        bos_token_id=128000,
        eos_token_id=[128001, 128008, 128009],
    ),
    "mistral7b": lambda: MistralConfig(
        vocab_size=32768,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_theta=1e6,
        sliding_window=None,
    ),
}


GEMMA_CONTROL = "<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn>"


def gemma_tokenizer():
    """A tokenizer with Gemma's control tokens and its real template, which knows no system message."""
    learned = Tokenizer.from_str(learned_bytes())
    learned.add_tokens([AddedToken(s, special=True, normalized=False) for s in GEMMA_CONTROL.split()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = (files("trl") / "chat_templates" / "gemma.jinja").read_text(encoding="utf-8")
    return tokenizer


PHI3_CONTROL = "<|assistant|> <|system|> <|end|> <|user|>"


def phi3_tokenizer(swallows_space):
    """Phi-3's control tokens and its real template on a SentencePiece tokenizer; in one of its published versions they
    swallow the white space after them.
    """
    tokenizer = mistral_tokenizer()
    added = [AddedToken("<|endoftext|>", special=True, normalized=False)]
    added += [AddedToken(s, special=True, rstrip=swallows_space, normalized=False) for s in PHI3_CONTROL.split()]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = (files("trl") / "chat_templates" / "phi3.jinja").read_text(encoding="utf-8")
    return tokenizer


def control_spellings(name):
    return [spelling.rstrip("~=") for spelling in CONTROL[name].split()]


def save(name, folder):
    """A folder as the hub would hold it, without weights: config.json, the tokenizer and its template."""
    folder.mkdir(parents=True, exist_ok=True)
    made = mistral_tokenizer() if name == "mistral7b" else byte_level_tokenizer(name)
    made.chat_template = template(name)
    made.save_pretrained(folder)
    ARCHITECTURES[name]().save_pretrained(folder)
    return folder


def config(name, folder, *overrides):
    """The project's own configuration of a family, with the test's folder in the hub name's place."""
    return load_config(ROOT / "configs" / f"{name}.yaml", [f"model_id={folder}", *overrides])


def template(name):
    shipped = {"qwen3_4b": "qwen3_instruct_2507", "llama3_2_3b": "llama3_2"}
    if name in shipped:
        return (files("trl") / "chat_templates" / f"{shipped[name]}.jinja").read_text(encoding="utf-8")
    return {"phi4mini": PHI_TEMPLATE, "mistral7b": MISTRAL_TEMPLATE}[name]


def byte_level_tokenizer(name):
    """A tokenizer with the family's control tokens at the end of its vocabulary, where the real ones are."""
    learned = Tokenizer.from_str(learned_bytes())
    if name == "qwen3_4b":
        learned.normalizer = normalizers.NFC()
    spellings = CONTROL[name].split()
    learned.add_tokens(
        [
            AddedToken(s.rstrip("~="), special=not s.endswith("="), rstrip=s.endswith("~"), normalized=False)
            for s in spellings
        ]
    )
    if name == "llama3_2_3b":
        # As the real one, it writes the beginning token itself unless told not to: a rendered prompt would have two.
        bos = "<|begin_of_text|>"
        learned.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, learned.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=learned, **NAMED[name])


@cache
def learned_bytes():
    """Byte-level BPE learned from a few of our own prompts and answers, as JSON."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    task = load_task()
    texts = [
        text
        for row in synthetic_rows(60, 1)
        for text in (task.messages(row["input"])[1]["content"], task.completion(row["output"]))
    ]
    learned.train_from_iterator(
        [task.system_text, *texts],
        trainers.BpeTrainer(
            vocab_size=1_500, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return learned.to_str()


def mistral_file():
    return next(file for file in (files("mistral_common") / "data").iterdir() if file.name.endswith(".model.v3"))


def mistral_tokenizer():
    """The real tokenizer of Mistral 7B v0.3, its merges in the order of their scores as the published conversion has
    them.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    pieces = ModelProto.FromString(mistral_file().read_bytes()).pieces
    vocabulary = {piece.piece: at for at, piece in enumerate(pieces)}
    merges = generate_merges(vocabulary, {piece.piece: piece.score for piece in pieces})
    control = [piece.piece for piece in pieces if piece.type == piece.CONTROL]
    return LlamaTokenizer(vocab=vocabulary, merges=merges, additional_special_tokens=control, legacy=False)
