"""vLLM, its answers under this project's own guarantee: in this process for answering rows, or as a server that is
started and stopped here.

Prompts travel as token ids, with a verdict's opening behind them, so that every engine reads the very same tokens and
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

import constrained_decode
from common import ROOT, UserError
from constrained_decode import Answer, _grammar
from constrained_decode._endpoint import STREAM, Closing, Endpoint, Failure, count, failed
from constrained_decode._reading import check_lengths
from constrained_decode._writing import text_of
from language_model import calibration, chat_template, hub, model_folder, model_server, verdict_branch

STARTS_SERVER = True
NEEDS_ENDPOINT = False
identity = constrained_decode.nothing_but_the_folder
RANDOM_WEIGHTS = True
PROCESSOR = "constrained_decode._vllm_guarantee:Guaranteed"
# The processor is of the kind that vLLM's first model runner calls; the second one, the default of later versions,
# calls another.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])),
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
PATH = "/completions"
TOP_LOGPROBS = 20  # the most that a server gives
ROWS = 64  # at a time, where nobody says more
PIECE = 2_048  # rows whose answers come together; vLLM itself takes as many of them at a time as fit


def load(model_path, task, config, batch_size=None, constrained=True):
    """An engine in this process."""
    check_installed()
    model_folder.check_whole(model_path)
    reader = Reader(model_path, task, config, constrained)
    os.environ.update(ENVIRONMENT if reader.is_held else {})
    from vllm import LLM

    llm = LLM(**engine_options(reader, task, config, batch_size or ROWS), disable_log_stats=True)
    return Engine(llm, reader, config.gen, calibration.stored_temperature(model_path), batch_size or ROWS)


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
    if not random_weights:
        model_folder.check_whole(model_path)
    port = model_server.free_port()
    reader = Reader(model_path, task, config, constrained)
    # Of a stream a first token at once, the others together: their events would cost the server more than the tokens.
    address = {"host": "127.0.0.1", "port": port, "stream_interval": config.gen.max_new_tokens}
    options = engine_options(reader, task, config, max(ROWS, n_rows), random_weights) | address
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments(options), *shlex.split(more)]
    environment = ENVIRONMENT if reader.is_held else {}
    with model_server.running(command, f"http://127.0.0.1:{port}/health", log, environment):
        yield f"http://127.0.0.1:{port}/v1", model_server.facts("vllm", command)


def engine_options(reader, task, config, n_rows, random_weights=False):
    """What LLM and the server are both started with, under vLLM's own names. Without the guarantee it is vLLM as it
    comes.
    """
    guarantee = {
        "grammar": reader.grammar,
        "end_id": reader.end_id,
        "temperature": config.gen.temperature,
        "top_p": config.gen.top_p,
    }
    held = {"logits_processors": [PROCESSOR], "additional_config": {"guarantee": guarantee}} if reader.is_held else {}
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


def connect(model_path, task, config, endpoint, n_clients, constrained=True):
    return Client(Reader(model_path, task, config, constrained), task, config.gen, n_clients, endpoint)


class Reader:
    """Conversations as the token ids that vLLM reads, and what belongs to them."""

    def __init__(self, model_path, task, config, constrained):
        from transformers import AutoConfig

        folder = hub.local_or_hub(model_path)
        self.model = str(model_path)
        self.constrained = constrained
        self.chat = chat_template.pinned_chat(hub.load_tokenizer(folder), config.chat)
        self.branch = verdict_branch.find_branch(self.chat, task) if task.verdict else None
        self.grammar = _grammar.of_task(task, self.chat)
        self.is_held = bool(constrained and self.grammar)
        self.end_ids = chat_template.end_ids(self.chat)
        self.end_id = self.end_ids[0]
        self.budget = config.gen.max_new_tokens
        self.label_tokens = list(self.branch.token_of.values()) if self.branch else []
        self.opening = self.branch.opening if self.branch and self.is_held else []
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

    @property
    def decoding(self):
        return _grammar.decoding(self.grammar, self.constrained, "guaranteed")

    def settled(self, token):
        """The tokens that a verdict's first token settles, itself first."""
        return self.branch.settled(next(label for label, first in self.branch.token_of.items() if first == token))

    def shares(self, logprobs, temperature):
        """{label: probability} from log-probabilities by token id; a label that is not among them counts as 0."""
        scaled = {
            label: logprobs[token] / temperature for label, token in self.branch.token_of.items() if token in logprobs
        }
        most = max(scaled.values(), default=0.0)
        weights = {label: math.exp(scaled[label] - most) if label in scaled else 0.0 for label in self.branch.token_of}
        return {label: weight / sum(weights.values()) for label, weight in weights.items()} if scaled else None


class Engine(constrained_decode.Engine):
    """In this process. A first request of one token decides the verdict; what it settles is read behind it, not
    written.
    """

    def __init__(self, llm, reader, gen, temperature, batch_size=ROWS):
        import vllm

        self.llm = llm
        self.reader = reader
        self.chat = reader.chat
        self.gen = gen
        self.batch_size = batch_size
        self.temperature = temperature
        self.facts = {
            "decoding": reader.decoding,
            "vllm": vllm.__version__,
            "steps": "one token a step" + ("; what the verdict settles is read" if reader.opening else ""),
            "calibration_temperature": temperature,
        }

    def check_prompt(self, messages):
        return len(self.reader.prompts([messages])[0])

    def answers(self, conversations, done=()):
        prompts = self.reader.prompts(conversations)
        for positions in pieces(len(prompts), done):
            yield from zip(positions, self._answers([prompts[at] for at in positions]), strict=True)

    def _answers(self, prompts):
        start = time.perf_counter()
        reader = self.reader
        n_opening = len(reader.opening)
        first = self._verdicts(prompts) if n_opening else [None] * len(prompts)
        begun = [reader.opening + (reader.settled(one.token_ids[0]) if one else []) for one in first]
        rest = self._written(
            [prompt + ids[n_opening:] for prompt, ids in zip(prompts, begun, strict=True)],
            [self._sampling(self.gen.max_new_tokens - len(ids), len(ids)) for ids in begun],
        )
        seconds = (time.perf_counter() - start) / max(1, len(prompts))
        for prompt, verdict, ids, one in zip(prompts, first, begun, rest, strict=True):
            shares = self._shares(verdict) if verdict else None
            yield self._answer(ids, one, len(prompt) - n_opening, shares, seconds)

    def _answer(self, begun, rest, n_prompt, shares, seconds):
        text, reason, n_tokens = text_of(begun + list(rest.token_ids), self.reader.end_ids, self.chat.tokenizer)
        return Answer(
            text, reason, n_prompt, n_tokens, shares, seconds, overruled=None, late=None, n_settled=len(begun)
        )

    def verdicts(self, conversations, done=()):
        # Where nothing is constrained, the opening is read all the same: the verdict is decided behind it.
        prompts = [prompt + self.reader.branch.opening for prompt in self.chat.prompts_ids(conversations)]
        for positions in pieces(len(prompts), done):
            found = self._verdicts([prompts[at] for at in positions])
            yield from zip(positions, map(self._shares, found), strict=True)

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
        found = {token: entry.logprob for token, entry in output.logprobs[0].items()}
        return self.reader.shares(found, self.temperature)

    def _sampling(self, max_tokens, n_answer):
        """n_answer: the prompt's last tokens that belong to the answer."""
        from vllm import SamplingParams

        if not self.reader.is_held:
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


def pieces(n, done):
    """Positions that are not done, so many at once: what comes of a piece can be kept before the next one begins."""
    left = [at for at in range(n) if at not in done]
    return [left[at : at + PIECE] for at in range(0, len(left), PIECE)]


class Client(constrained_decode.Engine):
    """Asks the server that `serve` started."""

    is_elsewhere = True

    def __init__(self, reader, task, gen, n_clients, endpoint):
        self.reader = reader
        self.chat = reader.chat
        self.task = task
        self.gen = gen
        self.batch_size = n_clients
        self.opening = reader.text(reader.opening)
        self.closing = Closing(reader.grammar, task) if reader.is_held else None
        self.server = Endpoint(endpoint, n_clients)
        self.outcomes = self.server.outcomes
        self.model = reader.model
        # A second request would cost time that no other engine's answer is charged.
        self.tells_probabilities = False
        self.facts = {
            "endpoint": self.server.address,
            "served_model": self.model,
            "concurrency": n_clients,
            "decoding": reader.decoding,
            "outcomes": self.outcomes,
        }

    def is_up(self):
        return self.server.is_up()

    def check_prompt(self, messages):
        return len(self.reader.prompts([messages])[0])

    def check(self):
        """The worker holds answers to the grammar, also where nothing asks for one."""
        answer = self.ask([{"role": "user", "content": "Say hello."}])
        if answer.failure:
            raise UserError(f"{self.server.address}: {answer.finish_reason}")
        if self.closing and (answer.late or self.task.parsed(answer.text) is None):
            raise UserError(
                f"{self.server.address}: the server does not hold its answers to the schema ({answer.text[:80]!r}); "
                f"is {PROCESSOR} loaded in it?"
            )

    def answers(self, conversations, done=()):
        yield from self.server.all(self.ask, conversations, done)

    def verdicts(self, conversations, done=()):
        yield from self.server.all(self._verdict, conversations, done)

    def ask(self, messages, with_shares=None, streams=False):
        """The shares are asked for by a request of their own: the processor leaves one token at each place."""
        start = time.perf_counter()
        body = self._body(messages, self.gen.max_new_tokens) | (STREAM if streams else {})
        try:
            reply = self.server.post(PATH, body)
        except Failure as failure:
            return failed(failure, self.outcomes, time.perf_counter() - start)
        answer = self._answer(reply, time.perf_counter() - start)
        if (self.tells_probabilities if with_shares is None else with_shares) and self.reader.branch:
            with contextlib.suppress(UserError):
                return dataclasses.replace(answer, probabilities=self._verdict(messages))
        return answer

    def _answer(self, reply, seconds):
        """The opening counts as the answer's, as it does on every engine; what the worker overruled is not known."""
        text = self.opening + reply.text
        whole = self.closing.closed(text) if self.closing else text
        is_answer = whole is not None if self.closing else self.task.parsed(whole) is not None
        count(self.outcomes, is_answer, is_answer and whole != text)
        n_opening = len(self.reader.opening)
        return Answer(
            text if whole is None else whole,
            reply.finish_reason or "stop",
            reply.usage.get("prompt_tokens", n_opening) - n_opening,
            reply.usage.get("completion_tokens", 0) + n_opening,
            None,
            seconds,
            overruled=None,
            late=1 if is_answer and whole != text else None,
            first_s=reply.first_s,
            n_settled=self._n_settled(whole) if n_opening else 0,
        )

    def _n_settled(self, text):
        answer = self.task.parsed(text) if text else None
        rest = len(self.reader.branch.settled(self.task.verdict.of(answer))) if answer else 0
        return len(self.reader.opening) + rest

    def _verdict(self, messages):
        """From one token; labels beyond the likeliest that the server lists count as impossible."""
        body = self._body(messages, 1 + len(self.reader.opening)) | {
            "prompt": self.chat.prompt_ids(messages) + self.reader.branch.opening,
            "logprobs": TOP_LOGPROBS,
            "return_tokens_as_token_ids": True,
        }
        try:
            reply = self.server.post(PATH, body)
        except Failure as failure:
            raise UserError(f"{self.server.address}: {failure}") from None
        likeliest = reply.logprobs[0] if reply.logprobs else {}
        by_id = {int(token.removeprefix("token_id:")): share for token, share in likeliest.items()}
        found = self.reader.shares(by_id, 1.0)
        if not found:
            raise UserError(
                f"{self.server.address}: none of the verdicts is among the {TOP_LOGPROBS} likeliest tokens; this "
                "model was not trained for them"
            )
        return found

    def _body(self, messages, max_tokens):
        """What to draw by is the processor's matter, where it draws."""
        reader = self.reader
        if reader.is_held:
            sampling = {
                "temperature": 0.0,
                "vllm_xargs": {"answer_tokens": len(reader.opening)},
                "stop_token_ids": [reader.end_id],
            }
        else:
            sampling = {
                "temperature": self.gen.temperature,
                "top_p": self.gen.top_p,
                "stop_token_ids": reader.end_ids,
            }
        return {
            "model": self.model,
            "prompt": reader.prompt_ids(messages),
            "max_tokens": max_tokens - len(reader.opening),
            **sampling,
        }
