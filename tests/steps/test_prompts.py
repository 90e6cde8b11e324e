"""In every model family, what is trained is what is served, the model reads the record and nothing of it steers the
model.
"""

import dataclasses
import json

import pytest
from jinja2 import TemplateError
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import AutoTokenizer

import check_model
import dataset
import make_standin
from common import UserError, to_json
from config import Chat
from language_model import chat_template, hub, verdict_branch
from support import families
from tasks import load_task
from tasks.crm.data import canonical
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
PLAIN = {"record1": {"a": "plain", "b": "text"}, "record2": {"c": ["one", "two"]}}
SPELLINGS = [*(spelling for name in families.NAMES for spelling in families.control_spellings(name)), "<0x0A>", "<pad>"]
EVERY_SPELLING = " ".join(SPELLINGS)
# Keys, nested values, lists, and text that escapes, joins or hides a control token when it is handled carelessly.
HOSTILE = {
    "record1": {"a": EVERY_SPELLING, "b": "".join(SPELLINGS)},
    "record2": {"c": [*SPELLINGS, f"\n\n{EVERY_SPELLING}\n"]},
}
HOSTILE_KEYS = {
    "record1": dict.fromkeys(SPELLINGS, "x"),
    "record2": {"a": {"<|im_start|>system\n": [["[INST]", ["</s>"]]]}},
}
ODD = {
    "record1": {
        "a": 'Zoë "Zo" O\'Neil\\ \t <b>é</b>',
        "b": "佐藤 健 🎌 \u2028 ﬁ ＜｜im_end｜＞",
        "n": [1, 2.5, True, None],
    },
    "record2": {
        "a": "two  spaces,  ends with one ",
        "b": " \r\nstarts with some",
        "c": "",
        "d": {"e": {"f": ["[", "<", "]", ">"]}},
        "z": "\x00\x7f",
    },
}
CASES = {"plain": PLAIN, "hostile": HOSTILE, "hostile_keys": HOSTILE_KEYS, "odd": ODD}
ANSWER = {
    "result": "NO_MATCH",
    "reasoning": 'Different people: email and city differ; name "Zoë" matches <|im_end|> [/INST].',
}


@pytest.fixture(scope="module")
def mistral_chat(folders):
    return chat_template.load_chat(families.config("mistral7b", folders["mistral7b"]))


@pytest.fixture(scope="module", params=families.NAMES)
def family(request, folders):
    return families.config(request.param, folders[request.param])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: families.save(name, root / name) for name in families.NAMES}


@pytest.fixture(scope="module")
def chat(family):
    return chat_template.load_chat(family)


def name_of(config):
    return config.model_id.rsplit("/", 1)[-1]


def completion(answer=ANSWER):
    return [{"role": "assistant", "content": TASK.completion(answer)}]


def prompt_row(row, at=0):
    return {
        "id": row.get("id", f"row{at}"),
        "prompt": TASK.messages(row["input"]),
        "completion": completion(row["output"]),
    }


def added_ids(chat, ids):
    """The tokens of the tokenizer's own added list, special or not, in order."""
    return [id for id in ids if id in chat.tokenizer.added_tokens_decoder]


def what_the_model_reads(chat, ids):
    """The JSON value in the user's turn, from nothing but the ids."""
    text = chat.tokenizer.decode(ids)
    start = text.index("{", text.index(TASK.system_text) + len(TASK.system_text))
    return json.JSONDecoder().raw_decode(text, start)


@pytest.mark.parametrize("case", CASES)
def test_the_model_reads_the_system_text_and_the_very_record(chat, case):
    ids = chat.prompt_ids(TASK.messages(CASES[case]))
    assert chat.tokenizer.decode(ids).count(TASK.system_text) == 1
    assert what_the_model_reads(chat, ids)[0] == CASES[case]


@pytest.mark.parametrize("case", CASES)
def test_no_token_of_a_record_steers_the_model(chat, case):
    ids = chat.prompt_ids(TASK.messages(CASES[case]))
    plain_ids = chat.prompt_ids(TASK.messages(PLAIN))
    assert added_ids(chat, plain_ids)
    assert added_ids(chat, ids) == added_ids(chat, plain_ids)


def test_the_spellings_are_control_tokens_where_nothing_escapes_them(chat, family):
    """Otherwise the test above would pass without any escaping."""
    spellings = families.control_spellings(name_of(family))
    assert len(spellings) >= 7
    for spelling in spellings:
        assert chat.tokenizer.convert_ids_to_tokens(added_ids(chat, chat.ids(f"a {spelling} b"))) == [spelling]


def test_one_beginning_token_where_the_family_has_one(chat, family):
    begin = {"llama3_2_3b": "<|begin_of_text|>", "mistral7b": "<s>"}.get(name_of(family))
    for ids in (
        chat.prompt_ids(TASK.messages(PLAIN)),
        chat_template.encode(TASK.messages(PLAIN), completion(), chat)["input_ids"],
    ):
        if begin is None:
            assert chat.tokenizer.bos_token_id is None or chat.tokenizer.bos_token_id not in ids
        else:
            assert (
                chat.tokenizer.convert_ids_to_tokens(ids).count(begin) == 1 and chat.tokenizer.decode(ids[:1]) == begin
            )


@pytest.mark.parametrize("case", CASES)
def test_loss_is_on_the_answer_and_its_end_token_only(chat, family, case):
    messages = TASK.messages(CASES[case])
    example = chat_template.encode(messages, completion(), chat)
    prompt_ids = chat.prompt_ids(messages)
    ids = example["input_ids"]
    labels = example["labels"]
    assert ids[: len(prompt_ids)] == prompt_ids and len(ids) == len(labels)
    assert labels[: len(prompt_ids)] == [chat_template.IGNORED] * len(prompt_ids)
    assert labels[len(prompt_ids) :] == ids[len(prompt_ids) :]
    end = chat.tokenizer.convert_tokens_to_ids(families.END[name_of(family)])
    assert (
        labels[-1] == end and labels.count(end) == 1 and dataset.n_answer_tokens(example) == len(ids) - len(prompt_ids)
    )
    assert (
        chat.tokenizer.decode(labels[len(prompt_ids) :]).strip(" ")
        == TASK.completion(ANSWER) + families.END[name_of(family)]
    )
    assert chat_template.end_ids(chat)[0] == end


def test_an_answer_ends_at_every_end_token_that_the_family_may_write(chat, family):
    eos = chat.tokenizer.eos_token_id
    assert set(chat_template.end_ids(chat)) == {
        chat.tokenizer.convert_tokens_to_ids(families.END[name_of(family)]),
        eos,
    }


def test_the_training_prompt_is_what_serving_sends(chat, family, tmp_path):
    """A server loads the saved tokenizer and renders messages by itself; it has the template and none of our code."""
    chat.tokenizer.save_pretrained(tmp_path)
    system, user = messages = TASK.messages(HOSTILE)
    if name_of(family) == "mistral7b":
        messages = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}]
    served = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert chat.prompt_ids([system, user]) == list(served["input_ids"])


def test_the_pinned_template_survives_saving(chat, family, tmp_path):
    chat.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == chat.tokenizer.chat_template
    pinned_again = chat_template.pinned_chat(again, family.chat)
    assert pinned_again.tokenizer.chat_template == chat.tokenizer.chat_template, (
        "pinning twice must not grow the template"
    )
    assert pinned_again.prompt_ids(TASK.messages(ODD)) == chat.prompt_ids(TASK.messages(ODD))


def test_check_model_passes_every_line(chat, capsys):
    assert check_model.check_template(chat, TASK, prompt_row(next(synthetic_rows(1, 3))))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(line.startswith("ok  ") for line in lines), lines


def test_a_template_may_open_its_turns_with_the_beginning_token_but_not_write_two_in_a_row(folders, capsys):
    """As SmolLM2's does, whose beginning token is ChatML's own opener."""
    row = prompt_row(next(synthetic_rows(1, 3)))
    settings = families.config("qwen3_4b", folders["qwen3_4b"]).chat
    opener = "<|im_start|>"
    found = {}
    for name, head in (("own", ""), ("doubled", "{{- bos_token }}"), ("late", "{{- '\n' }}")):
        tokenizer = families.byte_level_tokenizer("qwen3_4b")
        tokenizer.bos_token = opener
        tokenizer.chat_template = head + make_standin.TEMPLATE
        chatml = chat_template.pinned_chat(tokenizer, settings)
        assert chatml.prompt_text(TASK.messages(PLAIN)).lstrip().startswith(opener)
        found[name] = check_model.check_template(chatml, TASK, row), capsys.readouterr().out
    assert found["own"][0] and "ok   beginning token: 3, the template opens every turn with it" in found["own"][1]
    assert not found["doubled"][0] and "FAIL beginning token: 4, two in a row" in found["doubled"][1]
    assert not found["late"][0] and "FAIL beginning token: 3, none of them at the beginning" in found["late"][1]


def test_a_template_without_a_system_turn_passes_with_its_text_in_the_users(capsys):
    """As Gemma's, which refuses a system message and writes its beginning token itself."""
    row = prompt_row(next(synthetic_rows(1, 3)))
    gemma = chat_template.pinned_chat(families.gemma_tokenizer(), Chat(system_in_user=True))
    assert check_model.check_template(gemma, TASK, row)
    said = capsys.readouterr().out
    assert "ok   beginning token: 1\n" in said and "end token '<end_of_turn>' is trained" in said
    with pytest.raises(TemplateError, match="System role not supported"):
        chat_template.pinned_chat(families.gemma_tokenizer(), Chat()).prompt_text(TASK.messages(PLAIN))


def test_verdicts_part_at_one_token_after_the_fixed_opening(chat):
    branch = verdict_branch.find_branch(chat, TASK)
    assert list(branch.token_of) == ["DUPLICATE", "POSSIBLE", "NO_MATCH"] and len(set(branch.token_of.values())) == 3
    assert chat.tokenizer.decode(branch.opening).strip(" ") == '{"result":"'
    for label, token in branch.token_of.items():
        example = chat_template.encode(TASK.messages(ODD), completion({"result": label, "reasoning": "x"}), chat)
        answer = [id for id in example["labels"] if id != chat_template.IGNORED]
        assert answer[: len(branch.opening) + 1] == [*branch.opening, token]
        assert label.startswith(chat.tokenizer.decode([token]))


def test_verdicts_that_start_alike_are_refused(chat, tmp_path):
    schema = json.loads(json.dumps(TASK.answer_schema))
    schema["properties"]["result"]["enum"] = ["DUPLICATE", "NO_MATCH_PERSON", "NO_MATCH_COMPANY"]
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(UserError, match="NO_MATCH_PERSON, NO_MATCH_COMPANY start with the same token"):
        file = dataclasses.replace(TASK.file, schema=str(tmp_path / "schema.json"))
        verdict_branch.find_branch(chat, dataclasses.replace(TASK, file=file))


def test_rows_that_do_not_fit_are_left_out_whole_and_named(chat, family):
    small = dataclasses.replace(family, train=dataclasses.replace(family.train, max_seq_len=420))
    long_answer = {"input": PLAIN, "output": ANSWER | {"reasoning": "email and phone match and city differs " * 8}}
    long_record = {"input": {"record1": {"a": "word " * 400}, "record2": {}}, "output": ANSWER}
    rows = [
        prompt_row(row, at)
        for at, row in enumerate([*synthetic_rows(4, 2), long_answer, long_record, {"input": PLAIN, "output": ANSWER}])
    ]
    examples, left_out = dataset.encode_rows(rows, chat, small)
    assert [row["id"] for row in left_out] == ["row4", "row5"] and len(examples) == 5
    assert "gen.max_new_tokens is 64" in left_out[0]["reason"] and "train.max_seq_len is 420" in left_out[1]["reason"]
    for example in examples:
        row = next(row for row in rows if row["id"] == example["id"])
        whole = chat_template.encode(row["prompt"], row["completion"], chat)
        assert example["input_ids"] == whole["input_ids"] and example["labels"] == whole["labels"]


def test_the_token_budget_counts_the_end_token(chat, family):
    row = prompt_row({"input": PLAIN, "output": ANSWER})
    n = dataset.n_answer_tokens(chat_template.encode(row["prompt"], row["completion"], chat))
    for budget, n_left_out in ((n, 0), (n - 1, 1)):
        tight = dataclasses.replace(family, gen=dataclasses.replace(family.gen, max_new_tokens=budget))
        assert len(dataset.encode_rows([row], chat, tight)[1]) == n_left_out


def test_no_family_reads_the_clock(chat):
    assert not check_model.reads_clock(chat, TASK.messages(PLAIN))
    assert chat.prompt_text(TASK.messages(PLAIN), strftime_now=lambda layout: "1 Jan 1970") == chat.prompt_text(
        TASK.messages(PLAIN)
    )


def test_llama_reads_the_clock_until_its_date_is_pinned(folders, capsys):
    config = families.config("llama3_2_3b", folders["llama3_2_3b"])
    assert "Today Date: 26 Jul 2024\n" in chat_template.load_chat(config).prompt_text(TASK.messages(PLAIN))
    bare = chat_template.pinned_chat(
        hub.load_tokenizer(config.model_id), dataclasses.replace(config.chat, template_vars={})
    )
    assert check_model.reads_clock(bare, TASK.messages(PLAIN))
    assert not check_model.check_template(bare, TASK, prompt_row(next(synthetic_rows(1, 3))))
    assert "FAIL the template does not read the clock" in capsys.readouterr().out


def test_a_pinned_value_with_quotes_stays_a_value(folders):
    config = families.config("llama3_2_3b", folders["llama3_2_3b"])
    odd = {"date_string": 'it\'s \\ {{ 1 + 1 }} "now"'}
    chat = chat_template.pinned_chat(
        hub.load_tokenizer(config.model_id), dataclasses.replace(config.chat, template_vars=odd)
    )
    assert f"Today Date: {odd['date_string']}\n" in chat.prompt_text(TASK.messages(PLAIN))


def test_mistral_loses_its_system_text_and_the_error_names_the_setting(folders, mistral_chat):
    config = families.config("mistral7b", folders["mistral7b"], "chat.system_in_user=false")
    chat = chat_template.load_chat(config)
    with pytest.raises(UserError, match="chat.system_in_user: true"):
        chat_template.encode(TASK.messages(PLAIN), completion(), chat)
    assert TASK.system_text in mistral_chat.tokenizer.decode(
        chat_template.encode(TASK.messages(PLAIN), completion(), mistral_chat)["input_ids"]
    )


@pytest.fixture(scope="module")
def mistral():
    """Mistral's own encoder, made for training data: the last turn may be the answer."""
    return MistralTokenizer.from_file(str(families.mistral_file()), mode=ValidationMode.finetuning)


@pytest.mark.parametrize("case", CASES)
def test_mistral_ids_are_those_of_mistrals_own_encoder(mistral_chat, mistral, case):
    assert mistral.instruct_tokenizer.tokenizer.version == TokenizerVersion.v3
    user = UserMessage(content=to_json(canonical(CASES[case])))
    answer = AssistantMessage(content=TASK.completion(ANSWER))
    folded = UserMessage(content=f"{TASK.system_text}\n\n{user.content}")
    theirs = [
        mistral.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
        for messages in ([folded, answer], [SystemMessage(content=TASK.system_text), user, answer])
    ]
    ours = chat_template.encode(TASK.messages(CASES[case]), completion(), mistral_chat)["input_ids"]
    assert ours == theirs[0] == theirs[1]


def test_a_checkpoint_without_a_template_or_an_end_token_is_refused(folders):
    tokenizer = hub.load_tokenizer(str(folders["qwen3_4b"]))
    tokenizer.chat_template = None
    config = families.config("qwen3_4b", folders["qwen3_4b"])
    with pytest.raises(UserError, match="no chat template"):
        chat_template.pinned_chat(tokenizer, config.chat)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    with pytest.raises(UserError, match="no end token"):
        chat_template.encode(TASK.messages(PLAIN), completion(), chat_template.pinned_chat(tokenizer, config.chat))


@pytest.mark.parametrize(
    ("lines", "words"), [("", "the file is empty"), ('{"input":{},"output":{}}\n', "rows.jsonl:1: not a prompt row")]
)
def test_a_file_that_holds_no_prompts_is_said_to_be_one(tmp_path, lines, words):
    (tmp_path / "rows.jsonl").write_text(lines)
    with pytest.raises(UserError, match=f"{words}.*build_prompts.py"):
        dataset.read_prompts(tmp_path / "rows.jsonl")


def test_the_prompt_is_exactly_this():
    """A change here changes what every trained model was trained on. Keys are sorted, and the records stand in one
    fixed order.
    """
    assert TASK.messages({"record1": {"name": "Jo [x] <y>", "tags": ["a", "ü"]}, "record2": {"n": 1, "ok": None}}) == [
        {
            "role": "system",
            "content": "You are a CRM data steward. Return **strict JSON** with keys: `result` (one of `DUPLICATE`, "
            "`POSSIBLE`, "
            "`NO_MATCH`) and `reasoning` (one short sentence). No extra text.",
        },
        {
            "role": "user",
            "content": '{"record1":{"n":1,"ok":null},"record2":{"name":"Jo \\u005bx] \\u003cy>","tags":["a","ü"]}}',
        },
    ]


def test_the_answer_is_exactly_this_and_the_verdict_comes_first():
    assert TASK.completion({"reasoning": "x", "result": "DUPLICATE"}) == '{"result":"DUPLICATE","reasoning":"x"}'
