"""Outlines on Transformers, the usual way to hold a model to a schema: a logits processor beside `generate`.

Outlines lets no token through that breaks the schema, and knows no token budget: an answer that is cut off there is
closed by this project's own automaton, as a server's is. What it keeps and costs beside hf.py stands in
docs/decoding.md.
"""

import dataclasses
import importlib.metadata
import json
import re

from common import UserError
from constrained_decode import _automaton, _grammar, hf, nothing_but_the_folder
from constrained_decode._endpoint import Closing

STARTS_SERVER = False
NEEDS_ENDPOINT = False
RANDOM_WEIGHTS = True
COMPACT = ""  # between the parts of the JSON: the project's one serialisation has no spaces
identity = nothing_but_the_folder


def load(model_path, task, config, batch_size=None, constrained=True, random_weights=False):
    check_installed()
    return Engine(*hf.loaded(model_path, config, random_weights), task, config.gen, batch_size, constrained)


def check_installed():
    try:
        importlib.metadata.version("outlines")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("--backend outlines: the package outlines is not installed; make setup installs it") from None


class Engine(hf.Engine):
    """The model and the plain `generate` of hf.py, with Outlines' choice of tokens."""

    def __init__(self, model, chat, stored, task, gen, batch_size=None, constrained=True):
        super().__init__(model, chat, stored, task, gen, batch_size, constrained=False)
        self.processor = None
        self.closing = None
        grammar = _grammar.of_task(task)
        if constrained and grammar:
            self.processor = processor_for(grammar, model, chat.tokenizer)
            self.closing = Closing(grammar, task)
        self.facts |= {
            "decoding": _grammar.decoding(grammar, constrained, "Outlines, closed here at the budget"),
            "outlines": importlib.metadata.version("outlines"),
        }

    def _generate(self, prompts, budget, admitted=None):
        import torch

        if not self.processor:
            return super()._generate(prompts, budget)
        self.processor.reset()
        # Outlines compiles its mask: on two CPU cores that takes most of a minute, and saves nothing behind it.
        stance = "default" if self.model.device.type == "cuda" else "force_eager"
        with torch.compiler.set_stance(stance):
            return super()._generate(prompts, budget, self.processor)

    def _answer(self, prompt, one, seconds, first_s=None):
        """Ended in the shortest way that fits, where the budget cut it off."""
        answer = super()._answer(prompt, one, seconds, first_s)
        if not self.closing:
            return answer
        whole = self.closing.closed(answer.text)
        is_closed = whole is not None and whole != answer.text
        return dataclasses.replace(
            answer, text=whole if is_closed else answer.text, overruled=None, late=int(is_closed)
        )


def processor_for(grammar, model, tokenizer):
    """Outlines' logits processor of a schema, or of a call in its wrapper."""
    try:
        import outlines
        from outlines import backends
    except ImportError as error:
        raise UserError(
            f"--backend outlines: the package {error.name or 'outlines'} is not installed here; pip install -r "
            "requirements.txt"
        ) from error
    wrapped = outlines.from_transformers(model, tokenizer)
    if grammar["tool_call"]:
        return backends.get_regex_logits_processor(None, wrapped, calls_regex(grammar["schema"]))
    return backends.get_json_schema_logits_processor(None, wrapped, json.dumps(grammar["schema"]), COMPACT)


def calls_regex(schema):
    """<tool_call name="NAME">{arguments}</tool_call> for each tool that the schema names."""
    from outlines_core.json_schema import build_regex_from_schema

    calls = []
    for names, arguments in _automaton.tools(schema):
        # References in the arguments are to the whole schema's definitions.
        own = build_regex_from_schema(json.dumps({"$defs": schema.get("$defs", {})} | arguments), COMPACT)
        calls.append(f'({"|".join(map(re.escape, names))})">{own}')
    return f'<tool_call name="({"|".join(calls)})</tool_call>'
