"""Make the stand-in model: python src/make_standin.py --data data/processed/train.jsonl --out models/standin

A small Qwen3-shaped model with random weights and a tokenizer learned from the prompts, for trying the whole
pipeline without a GPU, a hub account or a download. It knows nothing before training and little after it.
"""

import argparse

import locks
from common import folder_written_whole, quiet_libraries, run
from language_model import model_folder
from manifest import Clock, write_manifest

VOCABULARY = 1_024
EMBEDDING_STD = 0.3
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- "
    "endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/processed/train.jsonl", help="prompts to learn the tokenizer from")
    parser.add_argument("--out", default="models/standin", help="model folder to write")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other random weights")
    args = parser.parse_args()
    import dataset

    clock = Clock()
    quiet_libraries()
    texts = (
        message["content"] for row in dataset.read_prompts(args.data) for message in row["prompt"] + row["completion"]
    )
    tokenizer, model = make(texts, args.seed)
    with locks.only_writer(args.out), folder_written_whole(args.out) as folder:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
        write_manifest(
            folder / "manifest.json",
            clock,
            parameters=model.num_parameters(),
            seed=args.seed,
            weights_sha256=model_folder.weights_sha256(folder),
        )
    print(f"{model.num_parameters():,} random parameters in {args.out}")


def make(texts, seed):
    """(a tokenizer learned from the texts, a model of random weights)."""
    tokenizer = learned_tokenizer(texts)
    return tokenizer, random_model(tokenizer, seed)


def learned_tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CONTROL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    learned.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=learned,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=CONTROL[1:2],
        chat_template=TEMPLATE,
    )


def random_model(tokenizer, seed):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.09,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    # The usual 0.02 leaves the tied output layer so small that no adapter could ever make one token likely.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    return model


if __name__ == "__main__":
    run(main)
