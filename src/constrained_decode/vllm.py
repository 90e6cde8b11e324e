"""vLLM, its answers under this project's own guarantee: in this process for answering rows, or as a server that is
started and stopped here.

Prompts travel as token ids with the answer's opening behind them, so that every engine reads the very same tokens and
no record can spell a control token. _vllm_guarantee.py, loaded into vLLM's worker, masks, draws and advances on the
device. Its options were checked with 0.26 and 0.32.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import shlex
import sys
import time

from common import ROOT, UserError, parsed_answer
from constrained_decode import Answer, openai_api
from constrained_decode._reading import check_lengths, text_of
from language_model import calibration, chat_template, hub, verdict_branch
from load import model_server
from tasks import load_task

PROCESSOR = "constrained_decode._vllm_guarantee:Guaranteed"
# The processor is of the kind that vLLM's first model runner calls; the second one, the default of later versions,
# calls another.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])),
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
TOP_LOGPROBS = 20  # the most that a server gives
ROWS = 64  # at a time, where nobody says more


def load(model_path, task, config, batch_size=None, constrained=True):
    """An engine in this process."""
    check_installed()
    os.environ.update(ENVIRONMENT if constrained else {})
    from vllm import LLM

    reader = Reader(model_path, task, config, constrained)
    llm = LLM(**engine_options(reader, task, config, batch_size or ROWS), disable_log_stats=True)
    return Engine(llm, reader, config.gen, calibration.stored_temperature(model_path))


def check_installed():
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "--backend vllm: vLLM is not installed here; it needs a CUDA GPU and requirements-gpu.txt, which make "
            "setup takes where there "
            "is a GPU; --backend hf answers without it"
        ) from None


@contextlib.contextmanager
def serve(model_path, task, config, n_rows, more, log, constrained=True, random_weights=False):
    """(the address of a server that runs while the block does, what a manifest should say of it)."""
    check_installed()
    port = model_server.free_port()
    reader = Reader(model_path, task, config, constrained)
    # Of a stream a first token at once, the others together: their events would cost the server more than the tokens.
    address = {"host": "127.0.0.1", "port": port, "stream_interval": config.gen.max_new_tokens}
    options = engine_options(reader, task, config, max(ROWS, n_rows), random_weights) | address
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments(options), *shlex.split(more)]
    with model_server.running(command, f"http://127.0.0.1:{port}/health", log, ENVIRONMENT if constrained else {}):
        yield f"http://127.0.0.1:{port}/v1", model_server.facts("vllm", command)


def engine_options(reader, task, config, n_rows, random_weights=False):
    """What LLM and the server are both started with, under vLLM's own names. Without the guarantee it is vLLM as it
    comes.
    """
    guarantee = {
        "schema": task.answer_schema,
        "end_id": reader.end_id,
        "temperature": config.gen.temperature,
        "top_p": config.gen.top_p,
    }
    held = (
        {"logits_processors": [PROCESSOR], "additional_config": {"guarantee": guarantee}} if reader.constrained else {}
    )
    return {
        "model": reader.model,
        "max_num_seqs": n_rows,
        "max_model_len": reader.longest,
        "generation_config": "vllm",
        "seed": 0,
        **held,
        **({"load_format": "dummy"} if random_weights else {}),
    }


def arguments(options):
    """The options as a command line."""
    found = []
    for name, value in options.items():
        found.append(f"--{name.replace('_', '-')}")
        found += value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else str(value)]
    return found


def connect(model_path, task_name, config, endpoint, n_clients, constrained=True):
    task = load_task(task_name)
    return Client(Reader(model_path, task, config, constrained), task, config.gen, n_clients, endpoint)


class Reader:
    """Conversations as the token ids that vLLM reads, and what belongs to them."""

    def __init__(self, model_path, task, config, constrained):
        from transformers import AutoConfig

        folder = hub.local_or_hub(model_path)
        self.model = str(model_path)
        self.constrained = constrained
        self.chat = chat_template.pinned_chat(hub.load_tokenizer(folder), config.chat)
        self.branch = verdict_branch.find_branch(self.chat, task)
        self.end_ids = chat_template.end_ids(self.chat)
        self.end_id = self.end_ids[0]
        self.budget = config.gen.max_new_tokens
        self.label_tokens = list(self.branch.token_of.values())
        self.opening = self.branch.opening if constrained else []
        self.longest = min(
            AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings,
            config.train.max_seq_len + config.gen.max_new_tokens,
        )

    def prompt_ids(self, messages):
        return self.prompts([messages])[0]

    def prompts(self, conversations):
        found = self.chat.prompts_ids(conversations)
        check_lengths(found, self.budget, self.longest)
        return [ids + self.opening for ids in found]

    def text(self, ids):
        return text_of(ids, self.end_ids, self.chat.tokenizer)[0]

    def settled(self, token):
        """The tokens that a verdict's first token settles, itself first."""
        label = next(label for label, first in self.branch.token_of.items() if first == token)
        return [token, *self.branch.rest_of[label]]

    def shares(self, logprobs, temperature):
        """{label: probability} from log-probabilities by token id; a label that is not among them has none to speak of."""
        scaled = {
            label: logprobs[token] / temperature for label, token in self.branch.token_of.items() if token in logprobs
        }
        most = max(scaled.values(), default=0.0)
        weights = {label: math.exp(scaled[label] - most) if label in scaled else 0.0 for label in self.branch.token_of}
        return {label: weight / sum(weights.values()) for label, weight in weights.items()} if scaled else None


class Engine:
    """In this process. A first request of one token decides the verdict; what it settles is read behind it, not
    written.
    """

    def __init__(self, llm, reader, gen, temperature):
        import vllm

        self.llm = llm
        self.reader = reader
        self.chat = reader.chat
        self.gen = gen
        self.temperature = temperature
        self.facts = {
            "decoding": "guaranteed" if reader.constrained else "unconstrained",
            "vllm": vllm.__version__,
            "steps": "one token a step" + ("; what the verdict settles is read" if reader.constrained else ""),
            "calibration_temperature": temperature,
        }

    def answers(self, conversations):
        start = time.perf_counter()
        prompts = self.reader.prompts(conversations)
        reader = self.reader
        first = self._verdicts(prompts) if reader.constrained else [None] * len(prompts)
        begun = [reader.opening + (reader.settled(one.token_ids[0]) if one else []) for one in first]
        rest = self._written(
            [prompt + ids[len(reader.opening) :] for prompt, ids in zip(prompts, begun, strict=True)],
            [self._sampling(self.gen.max_new_tokens - len(ids), len(ids)) for ids in begun],
        )
        seconds = (time.perf_counter() - start) / max(1, len(prompts))
        for at, (verdict, ids, one) in enumerate(zip(first, begun, rest, strict=True)):
            text, reason, n_tokens = text_of(ids + list(one.token_ids), reader.end_ids, self.chat.tokenizer)
            yield (
                at,
                Answer(
                    text,
                    reason,
                    len(prompts[at]) - len(reader.opening),
                    n_tokens,
                    self._shares(verdict) if verdict else None,
                    seconds,
                    overruled=None,
                    late=None,
                    n_settled=len(ids),
                ),
            )

    def verdicts(self, conversations):
        # Where nothing is constrained, the opening is read all the same: the verdict is decided behind it.
        prompts = [prompt + self.reader.branch.opening for prompt in self.chat.prompts_ids(conversations)]
        for at, one in enumerate(self._verdicts(prompts)):
            yield at, self._shares(one)

    def _verdicts(self, prompts):
        """The first token of a verdict for each prompt, none but these allowed, with the log-probability of each."""
        from vllm import SamplingParams

        labels = self.reader.label_tokens
        sampling = SamplingParams(
            max_tokens=1,
            temperature=self.gen.temperature,
            top_p=self.gen.top_p,
            allowed_token_ids=labels,
            logprob_token_ids=labels,
            detokenize=False,
        )
        return self._written(prompts, [sampling] * len(prompts))

    def _shares(self, output):
        return self.reader.shares({token: told.logprob for token, told in output.logprobs[0].items()}, self.temperature)

    def _sampling(self, max_tokens, n_answer):
        """n_answer: the prompt's last tokens that belong to the answer; the processor leaves a request without any
        alone.
        """
        from vllm import SamplingParams

        if not n_answer:
            return SamplingParams(
                max_tokens=max_tokens,
                temperature=self.gen.temperature,
                top_p=self.gen.top_p,
                detokenize=False,
                stop_token_ids=self.reader.end_ids,
            )
        # The processor draws by itself and leaves one token, which needs no drawing.
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            detokenize=False,
            stop_token_ids=[self.reader.end_id],
            extra_args={"answer_tokens": n_answer},
        )

    def _written(self, prompts, sampling):
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return [output.outputs[0] for output in outputs]


class Client(openai_api.Engine):
    """Asks the server that `serve` started."""

    path = "/completions"

    def __init__(self, reader, task, gen, n_clients, endpoint):
        self.reader = reader
        self.chat = reader.chat
        self.opening = reader.text(reader.opening)
        super().__init__(reader.model, task, gen, n_clients, reader.constrained, endpoint)
        self.facts["decoding"] = "guaranteed" if reader.constrained else "unconstrained"

    def check(self):
        """The worker holds answers to the schema, also where nothing asks for one."""
        answer = self._answer([{"role": "user", "content": "Say hello."}])
        if answer.finish_reason.startswith("failed"):
            raise UserError(f"{self.endpoint}: {answer.finish_reason}")
        if self.constrained and (answer.late or parsed_answer(answer.text, self.schema) is None):
            raise UserError(
                f"{self.endpoint}: the server does not hold its answers to the schema ({answer.text[:80]!r}); is "
                f"{PROCESSOR} loaded in it?"
            )

    def answer(self, messages, with_shares):
        """The shares are asked for by a request of their own: the processor leaves one token at each place."""
        answer = self._answer(messages)
        if with_shares and not answer.finish_reason.startswith("failed"):
            with contextlib.suppress(UserError):
                return dataclasses.replace(answer, probabilities=self._verdict(messages))
        return answer

    def _answer(self, messages, streams=False):
        """The opening counts as the answer's, as it does on every engine, and what the worker overruled it does not
        tell.
        """
        answer = super()._answer(messages, streams)
        n_opening = len(self.reader.opening)
        if answer.finish_reason.startswith("failed"):
            return answer
        told = parsed_answer(answer.text, self.schema) if self.constrained else None
        n_settled = n_opening + len(self.reader.branch.rest_of[told[self.task.verdict.key]]) + 1 if told else n_opening
        return dataclasses.replace(
            answer,
            prompt_tokens=answer.prompt_tokens - n_opening,
            completion_tokens=answer.completion_tokens + n_opening,
            late=answer.late or None,
            n_settled=n_settled,
        )

    def _verdict(self, messages):
        """From one token; labels beyond the likeliest that the server tells count as impossible."""
        body = self._body(messages, 1 + len(self.reader.opening), None) | {
            "prompt": self.chat.prompt_ids(messages) + self.reader.branch.opening,
            "logprobs": TOP_LOGPROBS,
            "return_tokens_as_token_ids": True,
        }
        try:
            reply = self._sent(body, time.perf_counter())
        except openai_api.Failure as failure:
            raise UserError(f"{self.endpoint}: {failure}") from None
        told = reply.logprobs[0] if reply.logprobs else {}
        found = self.reader.shares({int(token.removeprefix("token_id:")): share for token, share in told.items()}, 1.0)
        if not found:
            raise UserError(
                f"{self.endpoint}: none of the verdicts is among the {TOP_LOGPROBS} likeliest tokens; this model was "
                "not trained for them"
            )
        return found

    def _body(self, messages, max_tokens, schema, probabilities=False):
        """What to draw by is the processor's matter, where it draws."""
        sampling = {
            "temperature": 0.0,
            "vllm_xargs": {"answer_tokens": len(self.reader.opening)},
            "stop_token_ids": [self.reader.end_id],
        }
        free = {"temperature": self.gen.temperature, "top_p": self.gen.top_p, "stop_token_ids": self.reader.end_ids}
        return {
            "model": self.model,
            "prompt": self.reader.prompt_ids(messages),
            "max_tokens": max_tokens - len(self.reader.opening),
            **(sampling if self.constrained else free),
        }
