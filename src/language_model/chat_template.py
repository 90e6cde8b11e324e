"""One Chat renders a model's prompts for training, check, evaluation and service, so that all see the same tokens."""

from dataclasses import dataclass

from common import UserError
from language_model.hub import load_tokenizer

IGNORED = -100
ENCODED_AT_ONCE = 1000  # examples in the tokenizer's hands: enough for every core, few for the memory
# The Alpaca layout as a chat template. Its headings are plain text, which a request could spell: there `### ` is broken
# up, so that `# ` is all that stands before a word. No server needs our code for that: the template goes with the
# tokenizer.
ALPACA = (
    "{%- for message in messages %}"
    "{%- if message.role == 'system' %}{{- '### Instruction:\\n' + message.content + '\\n\\n' }}"
    "{%- elif message.role == 'user' %}"
    "{{- '### Input:\\n' + (message.content | replace('### ', '## # ')) + '\\n\\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '### Response:\\n' + message.content + eos_token }}"
    "{%- else %}{{- raise_exception('a message must be of the system, the user or the assistant') }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its template pinned: no clock in it, and the system text where the model will read it."""

    tokenizer: object
    system_in_user: bool

    def prompt_text(self, messages, **variables):
        return self._render(self._folded(messages), add_generation_prompt=True, **variables)

    def full_text(self, messages, completion):
        return self._render(self._folded(messages) + completion, add_generation_prompt=False)

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt_ids(self, messages):
        return self.prompts_ids([messages])[0]

    def prompts_ids(self, conversations):
        """Of many at once, which the tokenizer shares out over the processor's cores."""
        return self.ids([self.prompt_text(messages) for messages in conversations]) if conversations else []

    def _render(self, messages, **options):
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)

    def _folded(self, messages):
        """Templates that lose a system message in training get it at the head of the first user turn, where they would
        write it.
        """
        if not self.system_in_user or messages[0]["role"] != "system":
            return messages
        system, user, *rest = messages
        return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]

    @property
    def pad_id(self):
        """Fills up batches; masked everywhere, so any token serves where the tokenizer names none."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.tokenizer.eos_token_id

    def control_ids(self):
        """Ids that steer the model and must never come from a record."""
        added = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))


def load_chat(config):
    """The config's tokenizer, its template pinned."""
    return pinned_chat(load_tokenizer(config.model_id), config.chat)


def pinned_chat(tokenizer, chat):
    if chat.template == "alpaca":
        tokenizer.chat_template = alpaca_template(tokenizer)
        # It has a place for the system text, whatever the model's own template does with it.
        return Chat(tokenizer, system_in_user=False)
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; choose an instruct checkpoint as model_id"
        )
    tokenizer.chat_template = pinned_template(tokenizer.chat_template, chat.template_vars)
    return Chat(tokenizer, chat.system_in_user)


def alpaca_template(tokenizer):
    """The Alpaca layout for one tokenizer, with a beginning token where the tokenizer or its template writes one."""
    if tokenizer.eos_token is None:
        raise UserError(
            f"chat.template: alpaca: {tokenizer.name_or_path} names no end-of-text token (eos_token) to end an answer "
            "with; set chat.template=own, or choose another checkpoint as model_id"
        )
    # Our code and servers add no special tokens to a rendered prompt, so the template must write it.
    is_added = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    # A template that names the token writes it at the beginning; one of ChatML spells its own opener instead.
    is_written = "bos_token" in (tokenizer.chat_template or "")
    return ("{{- bos_token }}" if is_added or is_written else "") + ALPACA


def pinned_template(template, variables):
    """The template with variables set inside it, so that every server that loads it renders the same prompt."""
    head = "".join(
        "{%- set " + name + " = '" + value.replace("\\", "\\\\").replace("'", "\\'") + "' %}"
        for name, value in variables.items()
    )
    return template if template.startswith(head) else head + template


def encode(prompt, completion, chat):
    """input_ids and labels of one example, cut after the token that ends the answer's turn."""
    return next(encode_all([(prompt, completion)], chat))


def encode_all(examples, chat):
    """`encode` of every (prompt, completion), so many at once that the tokenizer uses every core."""
    control = chat.control_ids()
    for start in range(0, len(examples), ENCODED_AT_ONCE):
        some = examples[start : start + ENCODED_AT_ONCE]
        prompts = [chat.prompt_text(prompt) for prompt, _ in some]
        wholes = [chat.full_text(*example) for example in some]
        for prompt, whole in zip(prompts, wholes, strict=True):
            check_beginning(prompt, whole)
        for prompt_ids, ids in zip(chat.ids(prompts), chat.ids(wholes), strict=True):
            yield masked(prompt_ids, ids, control)


def check_beginning(prompt_text, full_text):
    if not full_text.startswith(prompt_text):
        raise UserError(
            "the chat template renders the prompt differently when the answer follows (a system message lost in "
            "training, for example); set chat.system_in_user: true in the config"
        )


def masked(prompt_ids, ids, control):
    """One example: its token ids up to the answer's end token, and labels that ignore the prompt."""
    if ids[: len(prompt_ids)] != prompt_ids:
        raise UserError(
            "the tokenizer splits the prompt differently when the answer follows, so what is trained is not what is "
            "served; choose a checkpoint whose template ends the prompt with a control token or a line break"
        )
    end = next((at for at in range(len(prompt_ids), len(ids)) if ids[at] in control), None)
    if end is None:
        raise UserError(
            "the chat template writes no end token after the answer, so the model would never learn to stop; choose an "
            "instruct checkpoint"
        )
    ids = ids[: end + 1]
    return {"input_ids": ids, "labels": [IGNORED] * len(prompt_ids) + ids[len(prompt_ids) :]}


def end_ids(chat):
    """The tokens that may end an answer: the template's own end of turn first, then the tokenizer's."""
    example = encode([{"role": "user", "content": "x"}], [{"role": "assistant", "content": "{}"}], chat)
    return list(dict.fromkeys([example["input_ids"][-1], chat.tokenizer.eos_token_id]))
