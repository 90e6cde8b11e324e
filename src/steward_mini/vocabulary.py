"""steward_mini's own tokenizer: small, blind to case and accents, one token a digit, control tokens that no record can
spell.

The fixed texts (the task's instruction, the answer's skeleton, the verdicts) are one token each, so they cost one step.
"""

from common import to_json

PAD = "<|pad|>"
END = "<|end|>"
ROLES = ("system", "user", "assistant")
VOCABULARY = 2_048
CONTEXT = 1_024  # tokens that the model will read
MOST_ROWS = 30_000  # that the tokenizer is fitted to
# Words, single digits, runs of punctuation, white space; a word starts the same token wherever it stands.
PIECES = r"\p{L}[\p{L}\p{M}]*|\p{N}|[^\s\p{L}\p{N}]+|\s+"
TEMPLATE = (
    "{%- for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def fitted(plan, task, out):
    """The tokenizer fitted to prompts and answers of the plan's rows, kept in the folder."""
    synthetic = task.module("synthetic")
    rows = synthetic.rows(min(MOST_ROWS, plan.pairs), plan.seed, recipe=synthetic.Recipe(**plan.recipe))
    texts = (text for row in rows for text in (to_json(task.canonical(row["input"])), task.completion(row["output"])))
    tokenizer = train(texts, task)
    tokenizer.save_pretrained(out)
    return tokenizer


def train(texts, task):
    """A tokenizer fitted to the texts, as transformers loads it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    control = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fixed = fixed_texts(task)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(fixed),
        special_tokens=control,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in fixed])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=control[2:],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def fixed_texts(task):
    """The instruction, the answer's parts around the verdict, the verdicts, and what the task's answers often say."""
    opening, rest = skeleton(task)
    return [task.system_text, opening, rest, *task.verdict.labels, *task.hook("synthetic", "FIXED_TEXTS", ())]


def skeleton(task):
    """What an answer writes before its verdict, and from there to the first letter of its text."""
    others = [key for key in task.answer_schema["required"] if key != task.verdict.key]
    text = task.completion({task.verdict.key: "?", others[0]: "!"})
    before, _, after = text.partition("?")
    return before, after.partition("!")[0]


def prompt_parts(tokenizer):
    """The texts around a prompt's JSON, read off the chat template itself."""
    mark = to_json({"mark": 1})
    messages = [{"role": "system", "content": "SYSTEM"}, {"role": "user", "content": mark}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, _, after = text.partition(mark)
    return before, after
