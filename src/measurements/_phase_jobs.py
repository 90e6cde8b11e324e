"""The trainings and evaluations that src/measure.py phases runs: what each needs, its command lines, what it leaves."""

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import ROOT, read_json, sha256_file
from manifest import SRC

N_VALIDATION = 500
N_TEST = 1_000
# Rows of the validation pool: training never shows their wordings, so a fine-tuned model still errs on them.
N_MORE = 3_000
LONGER = ("train.lr=2e-4", "train.evals_per_epoch=1")
N_SAMPLED = 500
N_SAMPLES = 4
N_PAIRS = 800
# The least that the specification asks for: 50 examples and 30 pairs; a tenth of 33 is kept for validation.
LITERAL_ROWS = 50
LITERAL_VALIDATION = 20
LITERAL_PAIRS = 33
# {rows: epochs}: few rows are read more often, or a run ends before it has learnt anything.
ROWS_TRIED = {50: 20, 200: 10, 1_000: 6, 10_000: 4}
# Small batches, or 50 rows would be one step an epoch; patience 99, so that every epoch is trained.
FEW_ROWS = (
    "train.batch_size=16",
    "train.lr=1e-3",
    "train.evals_per_epoch=1",
    "train.eval_rows=50",
    "train.patience=99",
)
DPO_TRIED = {
    "beta_0.03": "dpo.beta=0.03",
    "beta_0.5": "dpo.beta=0.5",
    "lr_1e-5": "dpo.lr=1e-5",
    "lr_1e-4": "dpo.lr=1e-4",
    "lr_2e-4": "dpo.lr=2e-4",
    "sft_term": "dpo.sft_weight=1",
}
BATCH = 128  # answers at once; three such evaluations fit beside one another on one GPU
SAMPLING_BATCH = 256
WAYS = {"raw": ("--unconstrained",), "grammar": ()}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured: the model, the task, and the numbers of a run."""

    task: str
    config: Path
    model_id: str
    out: Path
    seeds: tuple
    n_rows: int
    fine: tuple  # settings of fine-tuning
    dpo: tuple  # settings of preference tuning
    validation: str  # the pool whose rows pick a checkpoint
    test: str  # the pool that no training shows
    by_hand: Path  # rows that no generator wrote

    @property
    def rows(self):
        return self.out / "rows"

    @property
    def train_prompts(self):
        return self.rows / "processed" / "train.jsonl"

    @property
    def val_prompts(self):
        return self.rows / "processed" / "val.jsonl"

    @property
    def more(self):
        return self.rows / "more"

    @property
    def test_rows(self):
        return {"test": self.rows / "test.jsonl", "hand": self.by_hand}

    def folder(self, name):
        return self.out / "models" / name


@dataclasses.dataclass(frozen=True)
class Job:
    """One piece of work: what must be there before, what it runs, and what it leaves."""

    name: str
    needs: tuple = ()
    cuts: tuple = ()  # of (file, file to write, how many rows; None for all), made before the commands run
    commands: tuple = ()
    outputs: tuple = ()
    is_there: Callable | None = None  # for a step that makes everything again each time: whether it need not
    adapter: Path | None = None  # of a training; it is enough where only the merge behind it fails


def table(plan):
    """Every job, behind those that it needs; of two that could begin, the earlier one does."""
    tuned_first = [fine_tuned(plan, seed) for seed in plan.seeds]
    chains = [behind(plan, sft, seed) for sft, seed in zip(tuned_first, plan.seeds, strict=True)]
    jobs = [*data_jobs(plan), *tuned_first, *itertools.chain.from_iterable(chains)]
    for sft, (_, _, dpo, longer) in zip(tuned_first, chains, strict=True):
        for job in (sft, dpo, longer):
            jobs += answers(plan, "answers", job, WAYS)
    jobs += base_answers(plan)
    jobs += literal_jobs(plan)
    jobs += ablations_of_rows(plan)
    jobs += ablations_of_dpo(plan, tuned_first[0], *chains[0][:2])
    return jobs


def step(name, *words):
    return (sys.executable, str(SRC / f"{name}.py"), *map(str, words))


# ---- rows and prompts


def data_jobs(plan):
    val = plan.rows / "val.jsonl"
    more_val = plan.more / "val.jsonl"
    return [
        synthesized(plan, "train", plan.rows / "train.jsonl", plan.n_rows, "train", 11),
        synthesized(plan, "val", val, N_VALIDATION, plan.validation, 1),
        synthesized(plan, "more", plan.more / "train.jsonl", N_MORE, plan.validation, 17),
        synthesized(plan, "test", plan.test_rows["test"], N_TEST, plan.test, 5),
        prompts(plan, "prompts", ("rows/train", "rows/val"), plan.rows),
        prompts(plan, "more_prompts", ("rows/more", "rows/val"), plan.more, (val, more_val, None)),
        # Else every first training would wait for one that fetches.
        Job("base", commands=(step("fetch_base", "--config", plan.config),)),
    ]


def synthesized(plan, name, path, n_rows, pool, seed):
    asked = ("--rows", n_rows, "--pool", pool, "--seed", seed, "--out", path)
    command = step("synthesize", "--task", plan.task, *asked)
    is_there = partial(has_rows, path, {"task": plan.task, "rows": n_rows, "pool": pool, "seed": seed})
    return Job(f"rows/{name}", commands=(command,), outputs=(path,), is_there=is_there)


def has_rows(path, asked):
    """Whether a file holds the rows that were asked for, as its manifest and its bytes say."""
    manifest = Path(f"{path}.manifest.json")
    return manifest.is_file() and says(read_json(manifest), asked) and is_whole(path, read_json(manifest)["sha256"])


def says(facts, asked):
    return all(facts.get(key) == value for key, value in asked.items())


def is_whole(path, sha256):
    return path.is_file() and sha256_file(path) == sha256


def prompts(plan, name, needs, data, *cuts):
    command = step("build_prompts", "--task", plan.task, "--data", data)
    outputs = tuple(data / "processed" / f"{split}.jsonl" for split in ("train", "val"))
    return Job(f"rows/{name}", needs, cuts, (command,), outputs)


# ---- trainings and the pairs between them


def trained(plan, name, needs, train, settings, cuts=(), val=None):
    """A fine-tuning."""
    files = ("--train", train, "--val", val or plan.val_prompts, "--out", plan.folder(name))
    command = step("sft_train", "--config", plan.config, "--task", plan.task, *files, "--set", *settings)
    adapter = plan.folder(name) / f"{plan.config.stem}-lora"
    return Job(name, (*needs, "base"), cuts, (command,), (adapter / "manifest.json",), adapter=adapter)


def tuned(plan, name, sft, pairs, settings, val=None):
    """A preference tuning of the adapter that one job trains on the pairs that another makes."""
    train, validation = pairs.outputs
    files = ("--train", train, "--val", validation, "--prompts", val or plan.val_prompts, "--out", plan.folder(name))
    words = ("--set", *settings) if settings else ()
    begun_with = ("--config", plan.config, "--task", plan.task, "--adapter", sft.adapter)
    command = step("dpo_train", *begun_with, *files, *words)
    adapter = plan.folder(name) / f"{plan.config.stem}-dpo"
    return Job(name, (sft.name, pairs.name), (), (command,), (adapter / "manifest.json",), adapter=adapter)


def paired(plan, name, needs, source, out, n_pairs=N_PAIRS, sampled=None, share=()):
    """Preference pairs from rows, and from the answers that another job draws."""
    test = tuple(plan.test_rows.values())
    drawn = sampled.outputs if sampled else ()
    given = ("--in", source, "--test", *test, *(("--predictions", *drawn) if drawn else ()))
    command = step("build_preferences", "--task", plan.task, *given, *share, "--n_pairs", n_pairs, "--out", out)
    needs = (*needs, "rows/test", *((sampled.name,) if sampled else ()))
    outputs = (out / "preferences.jsonl", out / "preferences_val.jsonl")
    return Job(name, needs, (), (command,), outputs, partial(has_pairs, out, source, test, drawn, n_pairs))


def has_pairs(out, source, test, drawn, n_pairs):
    """Whether a folder holds whole pairs of these very files."""
    manifest = out / "preferences.manifest.json"
    if not manifest.is_file():
        return False
    facts = read_json(manifest)
    asked = {
        "n_pairs": n_pairs,
        "source_sha256": sha256_file(source),
        "test_sha256": [sha256_file(path) for path in test],
        "predictions_sha256": [sha256_file(path) for path in drawn],
    }
    return says(facts, asked) and all(is_whole(out / name, sha256) for name, sha256 in facts["sha256"].items())


def fine_tuned(plan, seed):
    settings = (*plan.fine, f"train.seed={seed}")
    return trained(plan, f"sft_seed{seed}", ("rows/prompts",), plan.train_prompts, settings)


def behind(plan, sft, seed):
    """Behind a seed's fine-tuning: answers to draw pairs from, the pairs, preference tuning, longer fine-tuning."""
    rows = plan.more / "train.jsonl"
    sampled = sampled_answers(plan, sft, seed, rows)
    pairs = paired(plan, f"pairs_seed{seed}", ("rows/more",), rows, plan.folder(sft.name) / "pairs", sampled=sampled)
    more = (*plan.fine, f"peft.start_from={sft.adapter}", *LONGER, f"train.seed={seed}")
    needs = (sft.name, "rows/more_prompts")
    return (
        sampled,
        pairs,
        tuned(plan, f"dpo_seed{seed}", sft, pairs, (*plan.dpo, f"dpo.seed={seed}")),
        trained(plan, f"longer_seed{seed}", needs, plan.more / "processed" / "train.jsonl", more),
    )


def sampled_answers(plan, sft, seed, rows):
    path = plan.folder(sft.name) / "sampled.jsonl"
    asked = ("--data", rows, "--limit", N_SAMPLED, "--samples", N_SAMPLES, "--batch_size", SAMPLING_BATCH)
    # Undisturbed, as the model itself would draw: what it gets wrong then is what tuning has to change.
    how = ("--unconstrained", "--set", "gen.temperature=1", "gen.top_p=1")
    command = step("predict", "--task", plan.task, "--model_path", sft.adapter, *asked, "--out", path, *how)
    return Job(f"sampled_seed{seed}", (sft.name, "rows/more"), (), (command,), (path,))


# ---- answers


def answers(plan, folder, job, ways):
    """The answers of the adapter that a job trains, scored."""
    model = ("--model_path", job.adapter)
    return [scored(plan, folder, job.name, job.name, model, rows, way) for rows in plan.test_rows for way in ways]


def base_answers(plan):
    model = ("--model_path", plan.model_id, "--config", plan.config)
    return [scored(plan, "answers", "base", "base", model, rows, way) for rows in plan.test_rows for way in WAYS]


def scored(plan, folder, name, needed, model, rows, way):
    path = plan.out / folder / f"{name}_{rows}_{way}_metrics.json"
    asked = ("--data", plan.test_rows[rows], "--batch_size", BATCH, "--out", path, *WAYS[way])
    needs = (needed, "rows/test") if rows == "test" else (needed,)
    command = step("evaluate_kpis", "--task", plan.task, *model, *asked)
    return Job(f"{folder}/{name}_{rows}_{way}", needs, (), (command,), (path,))


# ---- the specification's recipe, and one setting changed


def literal_jobs(plan):
    """The recipe as it is written: the settings of the task, few rows, few pairs."""
    rows = plan.rows / "literal"
    train = rows / "processed" / "train.jsonl"
    val = rows / "processed" / "val.jsonl"
    cuts = (
        (plan.rows / "train.jsonl", rows / "train.jsonl", LITERAL_ROWS),
        (plan.train_prompts, train, LITERAL_ROWS),
        (plan.val_prompts, val, LITERAL_VALIDATION),
    )
    cut = Job("rows/literal", ("rows/prompts",), cuts, outputs=tuple(target for _, target, _ in cuts))
    sft = trained(plan, "literal_sft", (cut.name,), train, ("chat.template=alpaca",), val=val)
    out = plan.folder(sft.name) / "pairs"
    pairs = paired(plan, "pairs_literal", (cut.name,), rows / "train.jsonl", out, LITERAL_PAIRS)
    dpo = tuned(plan, "literal_dpo", sft, pairs, (), val)
    return [cut, sft, pairs, dpo, *answers(plan, "answers", sft, WAYS), *answers(plan, "answers", dpo, WAYS)]


def ablations_of_rows(plan):
    jobs = []
    for n, epochs in ROWS_TRIED.items():
        name = f"rows_{n}"
        train = plan.rows / name / "train.jsonl"
        settings = (*plan.fine, *FEW_ROWS, f"train.epochs={epochs}", f"train.seed={plan.seeds[0]}")
        job = trained(plan, name, ("rows/prompts",), train, settings, ((plan.train_prompts, train, n),))
        jobs += [job, *answers(plan, "ablations", job, ["raw"])]
    return jobs


def ablations_of_dpo(plan, sft, sampled, pairs):
    """The first seed's preference tuning with one setting or the kind of its rejected answers changed."""
    rows = plan.more / "train.jsonl"
    folder = plan.folder(sft.name)
    needs = ("rows/more",)
    constructed = paired(plan, "pairs_constructed", needs, rows, folder / "pairs_constructed")
    share = ("--on_policy_share", 1)
    on_policy = paired(plan, "pairs_on_policy", needs, rows, folder / "pairs_on_policy", sampled=sampled, share=share)
    settings = (*plan.dpo, f"dpo.seed={plan.seeds[0]}")
    tunings = [
        tuned(plan, "constructed", sft, constructed, settings),
        tuned(plan, "on_policy", sft, on_policy, settings),
        *(tuned(plan, name, sft, pairs, (*settings, setting)) for name, setting in DPO_TRIED.items()),
    ]
    scorings = [answers(plan, "ablations", job, ["raw"]) for job in tunings]
    return [constructed, on_policy, *tunings, *itertools.chain.from_iterable(scorings)]


# ---- in words


def lines_of(job):
    needs = f" (needs {', '.join(job.needs)})" if job.needs else ""
    return [f"{job.name}{needs}", *(f"  {line}" for line in shown(job))]


def shown(job):
    """What a job does, as one would type it in the project's folder."""
    for source, target, n_rows in job.cuts:
        words = ["head", "-n", str(n_rows)] if n_rows else ["cat"]
        yield f"{typed([*words, str(source)])} > {typed([str(target)])}"
    for _, *words in job.commands:
        yield typed(["python", *words])


def typed(words):
    return shlex.join(words).replace(f"{ROOT}/", "")
