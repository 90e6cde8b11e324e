"""Check one model before any GPU hour: python src/check_model.py --config configs/phi4mini.yaml

Config, chat template, lengths, what LoRA adapts, memory and time, and one training sample with its loss mask.
"""

import argparse
import itertools
import os
import sys

import dataset
from common import UserError, WorkFailed, existing_file, in_words, quiet_libraries, read_json, run
from config import load_config
from language_model import base_files, chat_template, hub, verdict_branch
from language_model.base_model import adapted_kinds, flops_per_token
from load_test.roofline import measured_flops_per_s
from tasks import DEFAULT, load_task
from tasks.class_mix import mix_warnings
from training import optimizer

# Spellings that open a control token in some family; a record may hold any of them.
HOSTILE = (
    "<|im_start|> <|im_end|> <|endoftext|> <|eot_id|> <|begin_of_text|> <|start_header_id|> <|end|> <|user|> "
    "<|assistant|> [INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] <s> </s> <unk> <pad> <think> </think> <0x0A> "
    "<start_of_turn> <end_of_turn> <bos> <eos>"
)
CLOCK_MARK = "what the clock says"
MOST_LEFT_OUT = 0.1  # of the rows; training leaves the others out whole and says which
ACHIEVED_SHARE = 0.25  # of the measured matrix rate: what this training loop reached on an H200 (LOG.md)
# Bytes a token keeps for each hidden value of each layer, by whether checkpointing is on; measured on an H200 (LOG.md).
ACTIVATION_BYTES = {True: 2.5, False: 80}
# Bytes for each value of the adapter: its weight and gradient in float32, and the optimizer's two states.
ADAPTER_BYTES = {optimizer.ADAMW: 16, optimizer.EIGHT_BIT: 10}


def main():
    args = parse_args()
    quiet_libraries()
    task = load_task(args.task)
    config = load_config(args.config, args.set, task.overlay)

    rows = dataset.read_prompts(args.train)
    say(
        True,
        f"config {args.config}: {config.name}, {config.model_id}, {config.peft.method} r={config.peft.r} "
        f"alpha={config.peft.alpha}",
    )
    for warning in warnings_of_the_mix(args.train, task):
        print(f"     warning: {warning}", flush=True)
    if config.package:
        # The hub gives a tokenizer alone; a package gives all or nothing.
        base_files.ensure(config)
    chat = chat_template.load_chat(config)
    passed = check_template(chat, task, rows[0])
    examples, fits = check_lengths(rows, chat, config, args.train)
    model = meta_model(config)
    passed &= fits & check_adapter(model, config)
    estimate(model, config, examples)
    show_sample(chat, examples[0])
    if not passed:
        raise WorkFailed(f"{args.config}: not ready to train; fix the lines marked FAIL")
    print(f"{args.config} is ready: make train-{os.path.splitext(os.path.basename(args.config))[0]}{task.for_make}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the model's YAML, for example configs/phi4mini.yaml")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="override settings, for example train.lr=1e-4"
    )
    parser.add_argument("--train", help="training prompts (default data/processed/train.jsonl)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    args.train = existing_file(
        args.train or load_task(args.task).under("data") / "processed" / "train.jsonl", "run make prep first"
    )
    return args


def say(good, words):
    print(f"{'ok  ' if good else 'FAIL'} {words}", flush=True)
    return good


def warnings_of_the_mix(train, task):
    """What the splits' manifest says against these rows; nothing where the prompts do not lie below one."""
    path = train.resolve().parent.parent / "manifest.json"
    facts = read_json(path) if path.is_file() else None
    classes = facts.get("classes") if isinstance(facts, dict) else None
    return mix_warnings(classes, task) if isinstance(classes, dict) and "test" in classes else []


def check_template(chat, task, row):
    """What the model will read is what we mean: nothing lost, nothing doubled, nothing from the clock or the record."""
    messages = task.messages(task.case_holding(HOSTILE))
    ids = chat.prompt_ids(messages)
    plain_ids = chat.prompt_ids(task.messages(task.case_holding("plain text")))
    control = chat.control_ids()
    example = chat_template.encode(row["prompt"], row["completion"], chat)
    end = example["input_ids"][-1]
    from_record = [id for id in ids if id in control] != [id for id in plain_ids if id in control]
    n_spellings = len(HOSTILE.split())
    checks = [
        (task.system_text in chat.tokenizer.decode(ids), "system text is in the prompt that training and serving use"),
        (
            not from_record,
            f"control tokens are the template's own ({n_spellings} spellings in a {task.case} stay text)",
        ),
        beginning(ids, chat.tokenizer.bos_token_id),
        (
            end in control and example["labels"][-1] == end,
            f"end token {chat.tokenizer.decode([end])!r} is trained, so the model learns to stop",
        ),
        (not reads_clock(chat, messages), "the template does not read the clock"),
    ]
    if task.verdict:
        branch = verdict_branch.find_branch(chat, task)
        checks.append((bool(branch), f"verdicts part at one token: {', '.join(task.verdict.labels)}"))
    passed = True
    for good, words in checks:
        passed &= say(good, words)
    return passed


def beginning(ids, bos):
    """(whether a prompt begins as its family's do, what was found): with one beginning token or none.

    ChatML of the SmolLM2 family opens every turn with it, so more of them are the template's own; two in a row are not.
    """
    n = ids.count(bos)
    if n and ids[0] != bos:
        return False, f"beginning token: {n}, none of them at the beginning; correct the chat template"
    if (bos, bos) in itertools.pairwise(ids):
        return False, f"beginning token: {n}, two in a row; take one out of the chat template"
    return True, f"beginning token: {n}{', the template opens every turn with it' if n > 1 else ''}"


def reads_clock(chat, messages):
    """Templates that write today's date call strftime_now; a prompt must be the same tomorrow."""
    shown = chat.prompt_text(messages, strftime_now=lambda layout: CLOCK_MARK)
    return CLOCK_MARK in shown


def check_lengths(rows, chat, config, path):
    examples, left_out = dataset.encode_rows(rows, chat, config)
    if not examples:
        raise UserError(
            f"{path}: none of the {len(rows):,} rows fits this model; {left_out[0]['id']}: {left_out[0]['reason']}"
        )
    totals = sorted(len(example["input_ids"]) for example in examples)
    answers = sorted(dataset.n_answer_tokens(example) for example in examples)
    good = say(
        len(left_out) <= MOST_LEFT_OUT * len(rows),
        f"lengths: prompt and answer {totals[len(totals) // 2]} tokens at the median, {totals[-1]} at most (limit "
        f"{config.train.max_seq_len}); "
        f"answer {answers[len(answers) // 2]} and {answers[-1]} (limit {config.gen.max_new_tokens}); {len(left_out):,} "
        f"of {len(rows):,} rows do not fit",
    )
    dataset.print_left_out(left_out, str(path), 10)
    return examples, good


def meta_model(config):
    """The true architecture without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with hub.hub_errors_explained(config.model_id):
        architecture = AutoConfig.from_pretrained(hub.local_or_hub(config.model_id))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)


def check_adapter(model, config):
    """Every linear kind of the architecture must carry an adapter; a list that matches some would adapt too little."""
    from peft import LoraConfig, get_peft_model

    kinds = linear_kinds(model)
    try:
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=config.peft.r,
                lora_alpha=config.peft.alpha,
                target_modules=config.peft.target_modules,
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise UserError(
            f"peft.target_modules: {config.peft.target_modules!r} matches nothing in this model; it has "
            f"{', '.join(sorted(kinds))}; "
            "use all-linear"
        ) from error
    found = adapted_kinds(adapted)
    n_trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    missing = sorted(kinds - found.keys())
    return say(
        not missing,
        f"LoRA adapts {', '.join(f'{kind} x{n}' for kind, n in sorted(found.items()))}: {n_trained:,} parameters"
        + (f"; NOT {', '.join(missing)}: use target_modules: all-linear" if missing else ""),
    )


def linear_kinds(model):
    """Names of the linear layers inside the blocks, the output embedding left out."""
    import torch

    head = model.get_output_embeddings()
    return {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def estimate(model, config, examples):
    """Memory and time before anything is downloaded or rented; both are marked as what they are."""
    import torch

    n_lora = sum(p.numel() for p in model.parameters() if p.requires_grad)
    n_base = sum(p.numel() for p in model.parameters()) - n_lora
    linear = flops_per_token(model, False) // 4
    weights = (0.53 * linear + 2 * (n_base - linear)) if config.peft.method == "qlora" else 2 * n_base
    longest = max(len(example["input_ids"]) for example in examples)
    unpacked = config.train.batch_size * longest
    batch_tokens = unpacked if config.train.packing == "off" else max(config.train.max_seq_len, unpacked)
    activations = (
        batch_tokens
        * model.config.hidden_size
        * model.config.num_hidden_layers
        * ACTIVATION_BYTES[config.train.gradient_ckpt]
    )
    gigabytes = [size / 1e9 for size in (weights, ADAPTER_BYTES[config.train.optimizer] * n_lora, activations)]
    fewer = "; training takes fewer rows at once where that is too much" if config.train.micro_batch == "auto" else ""
    print(
        f"     memory, estimated: {sum(gigabytes) + 1:.1f} GB = weights {gigabytes[0]:.1f} + adapter and optimizer "
        f"{gigabytes[1]:.1f} "
        f"+ activations {gigabytes[2]:.1f} at batch_size rows + 1 for the GPU's own{fewer}"
    )
    tokens = sum(len(example["input_ids"]) for example in examples) * config.train.epochs
    flops = flops_per_token(model, config.train.gradient_ckpt) * tokens
    rate = measured_flops_per_s()
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
    print(
        f"     time, estimated: {tokens:,.0f} tokens over {config.train.epochs:g} epochs, "
        f"{in_words(flops / rate / ACHIEVED_SHARE)} on {place} "
        f"({rate / 1e12:,.2f} TFLOP/s measured just now, {ACHIEVED_SHARE:.0%} of it assumed)"
    )


def show_sample(chat, example):
    """One sample as the model sees it: no loss on the prompt, which is dim; in brackets where there is no colour."""
    n = dataset.n_answer_tokens(example)
    prompt = chat.tokenizer.decode(example["input_ids"][:-n])
    answer = chat.tokenizer.decode(example["input_ids"][-n:])
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        print("     one training sample, no loss on the dim part, loss on the green part:")
        print(f"\033[2m{prompt}\033[0m\033[1;32m{answer}\033[0m")
    else:
        print("     one training sample, loss on the part between >>> and <<< only:")
        print(f"{prompt}>>>{answer}<<<")


if __name__ == "__main__":
    run(main)
