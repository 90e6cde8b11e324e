"""Direct preference optimization (DPO) of a fine-tuned adapter against its own frozen copy."""

import dataclasses
import functools
import math
import shutil

import interruption
from common import WorkFailed, counted, read_json, sha256_file, shown_path
from language_model import base_model, chat_template, model_folder
from manifest import Clock, write_manifest
from training import checkpoints, fine_tuning, optimizer, phase_before, preference_pairs
from training.processes import is_main, n_processes, say, use_every_core


def tune(args, config, task, adapter, tuned, fingerprint, clock):
    """Train `adapter` on the pairs of args.train and leave the result, with its record, in `tuned`."""
    from training import preference_trainer

    use_every_core()
    chat = chat_template.load_chat(config)
    examples, left_out = fine_tuning.encoded(
        args,
        lambda path: preference_pairs.encode_pairs(preference_pairs.read_pairs(path, task), chat, config),
        tuned,
        "pair",
    )
    kept = checkpoints.prepare_folder(tuned, fingerprint)
    with interruption.keeping(functools.partial(checkpoints.kept_words, kept)):
        trainer = make_trainer(config, chat, examples, adapter, kept)
        announce(trainer, config, examples, adapter, kept)
        run_within_memory(trainer, kept, args.config)
    trainer.accelerator.wait_for_everyone()
    if is_main():
        fine_tuning.save_adapter(trainer, chat, tuned, "dpo.lr")
        write_manifest(
            tuned / "manifest.json",
            clock,
            config=dataclasses.asdict(config),
            fingerprint=fingerprint,
            weights_sha256=model_folder.weights_sha256(tuned),
            task=task.name,
            training=training_facts(trainer, config, examples, left_out),
            curves=preference_trainer.curves(trainer.state.log_history),
            fine_tuning=phase_before.recorded(read_json(adapter / "manifest.json")),
            data=data_facts(args),
        )
        shutil.rmtree(kept)
        report(trainer, config)
    trainer.accelerator.end_training()


def make_trainer(config, chat, examples, adapter, kept):
    from datasets import Dataset
    from peft import PeftModel

    from training import preference_trainer
    from training import trainer as loop

    base, precision = base_model.load_base(config)
    # Without a peft_config TRL copies the adapter that is there, and the copy is the reference.
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    rows_a_step = config.dpo.batch_size * config.dpo.grad_accum * n_processes()
    n_steps = math.ceil(len(examples["train"]) / rows_a_step * config.dpo.epochs)
    trainer = preference_trainer.PreferenceTrainer(
        model=model,
        args=preference_trainer.arguments(config, precision, n_steps, kept),
        train_dataset=Dataset.from_list(examples["train"]),
        eval_dataset=Dataset.from_list(examples["val"]),
        processing_class=chat.tokenizer,
        callbacks=[preference_trainer.Progress(), loop.Saving()],
    )
    preference_trainer.begin_at_the_reference(trainer.model)
    loop.keep_own_callbacks(trainer)
    trainer.precision = precision
    return trainer


def announce(trainer, config, examples, adapter, kept):
    last = checkpoints.last_whole_checkpoint(kept)
    dpo = config.dpo
    begun = (
        f"preference tuning {config.name}: {counted(len(examples['train']), 'pair')}, "
        f"{dpo.batch_size * dpo.grad_accum * n_processes()} a step, lr {dpo.lr:g}, beta {dpo.beta:g}; the reference is "
        f"{adapter}, frozen"
    )
    say(f"going on from step {checkpoints.step_of(last)}, kept in {last}" if last else begun)


def run_within_memory(trainer, kept, config_path):
    import torch

    trainer.accelerator.wait_for_everyone()  # stale checkpoints are gone before any process looks for the last one
    try:
        fine_tuning.run_from_the_last(trainer, kept)
    except torch.cuda.OutOfMemoryError as error:
        n_pairs = trainer.args.per_device_train_batch_size
        raise WorkFailed(
            f"{config_path}: the GPU's memory does not suffice for {counted(n_pairs, 'pair')} at once "
            f"({str(error).split('.')[0]}); try --set train.gradient_ckpt=true, a smaller dpo.batch_size with a larger "
            "dpo.grad_accum, or a smaller train.max_seq_len; checkpoints are kept"
        ) from error


def training_facts(trainer, config, examples, left_out):
    """What the report and the model card say about the training."""
    from training import preference_trainer

    state = trainer.state
    last = preference_trainer.last_judged(state.log_history)
    return {
        "method": config.peft.method,
        "precision": trainer.precision,
        "optimizer": optimizer.ADAMW,
        "rows": len(examples["train"]),
        "rows_val": len(examples["val"]),
        "left_out": left_out,
        "steps": state.global_step,
        "epochs": round(state.epoch or 0, 3),
        "per_device_batch": trainer.args.per_device_train_batch_size,
        "grad_accum": trainer.args.gradient_accumulation_steps,
        "processes": n_processes(),
        "chosen_fell_by": round(preference_trainer.fall(last, config.dpo.beta), 4),
        "val_margin": round(last["eval_rewards/margins"], 4),
        "val_accuracy": round(last["eval_rewards/accuracies"], 4),
        "adapted": base_model.adapted_kinds(trainer.model),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        **trainer.speed.facts(),
        **{key: value for key, value in Clock().facts().items() if key.startswith("peak")},
    }


def data_facts(args):
    """The files that were read; `val` is what the merged model is compared and calibrated on."""
    files = {"preferences": args.train, "preferences_val": args.val, "val": args.prompts}
    return {name: {"path": shown_path(path), "sha256": sha256_file(path)} for name, path in files.items()}


def report(trainer, config):
    """The validation pairs at the end; with a warning where the chosen answers became less likely."""
    from training import preference_trainer

    last = preference_trainer.last_judged(trainer.state.log_history)
    if preference_trainer.fall(last, config.dpo.beta) > preference_trainer.CHOSEN_MAY_FALL:
        words = preference_trainer.fall_words(last, config.dpo.beta)
        print(f"warning: at the end {words}; {preference_trainer.ADVICE}, and run it again", flush=True)
