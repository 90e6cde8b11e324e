"""The guarantee against judges that know nothing of it: jsonschema and llguidance decide what is valid, and the same
test fails without it.
"""

import json
import random
from functools import lru_cache, reduce

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import make_standin
from common import UserError, parse_json, to_json
from constrained_decode import _automaton, _tokens
from constrained_decode._guarantee import Guarantee
from constrained_decode._sampling import drawn
from support import families
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
SCHEMA = TASK.answer_schema
BUDGET = 64
# Byte-level and small; byte-level with a vocabulary padded to 151,936 and two end tokens; sentencepiece-like with
# single bytes to fall back on.
KINDS = {"small": 1_024, "padded": 151_936, "sentencepiece": 32_768}
TEMPERATURES = (0.0, 0.1, 1.5)
# Answers of each temperature and adversary: 10,008 in all, fewer where a step costs more.
ROWS = {"small": 1_052, "padded": 6, "sentencepiece": 54}


@lru_cache
def tokenizer_of(kind):
    if kind == "small":
        texts = [
            text for row in synthetic_rows(60, 1) for text in (json.dumps(row["input"]), TASK.completion(row["output"]))
        ]
        return make_standin.make(texts, seed=1)[0]
    return families.mistral_tokenizer() if kind == "sentencepiece" else families.byte_level_tokenizer("qwen3_4b")


@lru_cache
def guarantee_of(kind, schema_text=None, budget=BUDGET):
    tokenizer = tokenizer_of(kind)
    n = KINDS[kind]
    automaton = _automaton.compile_schema(json.loads(schema_text) if schema_text else SCHEMA)
    texts = _tokens.token_bytes(tokenizer, n)
    tables = _tokens.lay_over(automaton, texts, tokenizer.eos_token_id)
    return Guarantee(automaton, tables, texts, tokenizer.eos_token_id, budget, "cpu")


def written(kind, n_rows, temperature, wishes, guarantee=None, budget=BUDGET):
    """The token ids of n_rows answers of a model whose logits are `wishes(step)`, plain sampling where there is no
    guarantee.
    """
    torch.manual_seed(11)
    end = tokenizer_of(kind).eos_token_id
    found = [[] for _ in range(n_rows)]
    going = set(range(n_rows))
    rows = guarantee.rows(n_rows) if guarantee else None
    for step in range(budget):
        logits = wishes(step)
        allowed = guarantee.masked(logits, rows)[0] if guarantee else logits
        tokens = (
            allowed.argmax(-1) if not temperature else torch.multinomial((allowed / temperature).softmax(-1), 1)[:, 0]
        )
        rows = guarantee.advanced(rows, tokens) if guarantee else None
        for row in list(going):
            found[row].append(int(tokens[row]))
            if found[row][-1] == end:
                going.remove(row)
        if not going:
            break
    return found


def random_model(kind, n_rows, seed, adversary=""):
    """Random logits; an adversary hates what closes an answer, or loves the tokenizer's other end tokens."""
    n = KINDS[kind]
    drawn = torch.Generator().manual_seed(seed)
    tokenizer = tokenizer_of(kind)
    # Of a large vocabulary most ids get one value: drawing every one anew would take the test an hour.
    lively = torch.randperm(n, generator=drawn)[:4_000]
    bias = torch.zeros(n)
    if adversary == "hates to close":
        bias[[id for id, text in enumerate(_tokens.token_bytes(tokenizer, n)) if text and b'"' in text]] = -50
        bias[tokenizer.eos_token_id] = -50
    if adversary == "loves other ends":
        bias[[*(id for id in tokenizer.all_special_ids if id != tokenizer.eos_token_id), tokenizer.eos_token_id]] = 50

    def wishes(step):
        logits = bias.expand(n_rows, n).clone()
        logits[:, lively] += 4 * torch.randn(n_rows, len(lively), generator=drawn)
        return logits

    return wishes


def problem_of(kind, ids, schema=SCHEMA):
    """What is wrong with an answer, in words; None where both judges have nothing to say."""
    tokenizer = tokenizer_of(kind)
    if ids[-1] != tokenizer.eos_token_id:
        return "not ended"
    text = tokenizer.decode(ids[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if any(
        ord(letter) < 32 or 127 <= ord(letter) < 160 or 0xD800 <= ord(letter) < 0xE000 or letter == "\ufffd"
        for letter in text
    ):
        return f"control characters or broken ones: {text!r}"
    if any(special in text for special in tokenizer.all_special_tokens):
        return f"a control token as text: {text!r}"
    try:
        value = parse_json(text)
    except ValueError as error:
        return f"not JSON ({error}): {text!r}"
    return next((error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(value)), None)


@pytest.mark.slow
@pytest.mark.parametrize("adversary", ["", "hates to close", "loves other ends"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_valid_whatever_the_model_wishes(kind, adversary):
    guarantee = guarantee_of(kind)
    broken_without = 0
    for temperature in TEMPERATURES:
        wishes = random_model(kind, ROWS[kind], 7, adversary)
        problems = [
            problem
            for ids in written(kind, ROWS[kind], temperature, wishes, guarantee)
            if (problem := problem_of(kind, ids))
        ]
        assert not problems, f"{len(problems)} of {ROWS[kind]}: {problems[:3]}"
        free = written(kind, 5, temperature, random_model(kind, 5, 7, adversary))
        broken_without += sum(problem_of(kind, ids) is not None for ids in free)
    assert broken_without == 5 * len(TEMPERATURES), (
        "a model with random weights writes no JSON by itself; a judge that finds nothing wrong with it judges nothing"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_another_judge_agrees_token_by_token(kind):
    """llguidance, which shares no line with this project, accepts the very tokens."""
    import llguidance
    import llguidance.hf

    guarantee = guarantee_of(kind)
    tokenizer = tokenizer_of(kind)
    judge = llguidance.hf.from_tokenizer(tokenizer, n_vocab=KINDS[kind], eos_token=tokenizer.eos_token_id)
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA), defaults={"whitespace_flexible": False})
    n_judged = 0
    for ids in written(kind, 60, 1.5, random_model(kind, 60, 3), guarantee):
        matcher = llguidance.LLMatcher(judge, grammar)
        text = tokenizer.decode(ids[:-1])
        if "\\u00" in text:
            # It wants printable characters as themselves; we write the two that could spell a control token as escapes.
            ids = [
                *tokenizer.encode(
                    json.dumps(parse_json(text), ensure_ascii=False, separators=(",", ":")), add_special_tokens=False
                ),
                ids[-1],
            ]
        else:
            n_judged += 1
        assert matcher.validate_tokens(ids[:-1]) == len(ids) - 1, text
        assert matcher.consume_tokens(ids[:-1]) and matcher.is_accepting()
    assert n_judged >= 45, "most answers must be judged by the very tokens that were chosen"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", TASK.verdict.labels)
def test_the_verdict_is_the_one_that_the_model_prefers_even_in_a_budget_that_just_suffices(kind, label):
    tight = guarantee_of(kind).tables.shortest(guarantee_of(kind).automaton.start)
    for budget in (tight, tight + 1, BUDGET):
        guarantee = guarantee_of(kind, budget=budget)
        wish = torch.zeros(1, KINDS[kind])
        for id, text in enumerate(_tokens.token_bytes(tokenizer_of(kind), KINDS[kind])):
            # It wishes for this label's spellings above all, the longest least: as many tokens as it may waste.
            if text and text.decode(errors="replace") in label:
                wish[0, id] = 30 - len(text)
        [ids] = written(kind, 1, 0.0, lambda step, wish=wish: wish.clone(), guarantee, budget)
        assert problem_of(kind, ids) is None
        said = parse_json(tokenizer_of(kind).decode(ids[:-1]))["result"]
        assert said[0] == label[0] and said == label, (said, label, budget)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.1, 1.5])
@pytest.mark.parametrize("value", [float("-inf"), float("nan"), float("inf"), -3e38])
def test_what_the_model_gives_no_chance_or_no_number_is_written_all_the_same(value, temperature):
    """All that may be written has one logit; only what steers the model has a better or an honest one."""
    guarantee = guarantee_of("small", budget=40)
    logits = torch.full((3, KINDS["small"]), value)
    logits[:, tokenizer_of("small").all_special_ids] = 5.0
    logits[2, ::2] = float("nan")
    torch.manual_seed(1)
    rows = guarantee.rows(3)
    found = []
    while not guarantee.is_done(rows).all():
        found.append(drawn(guarantee.masked(logits.clone(), rows)[0], temperature, 0.9))
        rows = guarantee.advanced(rows, found[-1])
        assert rows.state.all() and len(found) <= 40, "the answer left its schema"
    end = tokenizer_of("small").eos_token_id
    for ids in torch.stack(found, 1).tolist():
        assert problem_of("small", ids[: ids.index(end) + 1]) is None


def test_a_budget_that_cannot_hold_an_answer_is_refused_before_any_token():
    guarantee = guarantee_of("small", budget=5)
    with pytest.raises(UserError, match="max_new_tokens is 5.*raise it"):
        guarantee.rows(1)


# ---- any schema

names = st.text('abcdeé "<[\\', min_size=1, max_size=5)
bounds = st.tuples(st.integers(-300, 300), st.integers(0, 600)).map(
    lambda pair: {"minimum": pair[0], "maximum": pair[0] + pair[1]}
)
lengths = st.tuples(st.integers(0, 3), st.integers(0, 6)).map(
    lambda pair: {"minLength": pair[0], "maxLength": pair[0] + pair[1]}
)
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": "integer"}),
    st.just({"type": "number"}),
    bounds.map(lambda bound: {"type": "integer"} | bound),
    bounds.map(lambda bound: {"type": "number"} | bound),
    lengths.map(lambda length: {"type": "string"} | length),
    lengths.map(lambda length: {"type": ["string", "null", "integer"]} | length),
    st.lists(st.one_of(names, st.integers(-20, 20), st.booleans(), st.none()), min_size=1, max_size=5).map(
        lambda values: {"enum": values}
    ),
    names.map(lambda name: {"const": name}),
)


LONG = "email and phone match " * 137  # 3,014 characters
counts_as_floats = lengths.map(lambda length: {"type": "string"} | {key: float(value) for key, value in length.items()})
# What a file can hold and nobody means; each is kept or refused in a sentence.
odd_leaves = st.one_of(
    counts_as_floats,
    st.sampled_from(
        [
            {"enum": ["a", float("inf")]},
            {"const": [float("nan")]},
            {"type": "integer", "minimum": float("-inf"), "maximum": 3},
            {"type": "number", "maximum": 1e300, "minimum": -2.0},
            {"const": LONG},
            {"enum": [LONG, LONG[:-1], "a"]},
            {"type": "array", "items": {"type": "null"}, "minItems": 1.0, "maxItems": 2.0},
            {"type": "array", "items": {"type": "null"}, "maxItems": 1e300},
            {"enum": ["a"], "allOf": [{"$ref": "#/none"}]},
            {"enum": ["a"], "not": {"$ref": "#"}},
            {"default": {"type": 5}, "$ref": "#/default"},
        ]
    ),
)


def nested(inner):
    objects = st.dictionaries(names, inner, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties) or ["-"]), max_size=3).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required & properties.keys()),
                "additionalProperties": False,
            }
        )
    )
    arrays = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda parts: {"type": "array", "items": parts[0], "minItems": parts[1], "maxItems": parts[1] + parts[2]}
    )
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=2).map(lambda several: {"anyOf": several}))


schemas = st.recursive(leaves, nested, max_leaves=6)
odd_schemas = st.recursive(odd_leaves | leaves, nested, max_leaves=4)
HELD = {"schemas": 0, "answers": 0, "refused": 0}


@pytest.mark.slow
@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schema=schemas)
def test_any_schema_is_kept_or_refused_before_generation(schema):
    try:
        guarantee = guarantee_of("small", json.dumps(schema), 200)
        guarantee.rows(1)
    except UserError:
        HELD["refused"] += 1
        return
    tokenizer = tokenizer_of("small")
    n = KINDS["small"]
    drawn = torch.Generator().manual_seed(5)
    for ids in written("small", 20, 1.5, lambda step: 4 * torch.randn(20, n, generator=drawn), guarantee, 200):
        assert problem_of("small", ids, schema) is None, tokenizer.decode(ids)
        HELD["answers"] += 1
    HELD["schemas"] += 1


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schema=odd_schemas)
def test_a_schema_that_nobody_means_is_kept_or_refused_in_a_sentence(schema):
    try:
        guarantee = guarantee_of("small", json.dumps(schema), 200)
        guarantee.rows(1)
    except UserError:
        return
    drawn_by = torch.Generator().manual_seed(5)
    for ids in written("small", 2, 1.5, lambda step: 4 * torch.randn(2, 1024, generator=drawn_by), guarantee, 200):
        assert problem_of("small", ids, schema) is None


@pytest.mark.slow
def test_most_schemas_were_kept_and_not_refused():
    assert HELD["schemas"] >= 500 and HELD["answers"] == 20 * HELD["schemas"], HELD


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}},
            "/properties/a/pattern: cannot be kept",
        ),
        ({"type": "array", "items": {"type": "null"}}, "without maxItems"),
        ({"oneOf": [{"type": "null"}]}, "/oneOf: cannot be kept"),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 3, "uniqueItems": True}, "/uniqueItems"),
        (True, "allows anything"),
        (False, "allows nothing"),
        ({"$ref": "#"}, "refers to itself"),
        ({"type": "object", "required": ["z"]}, "/required: 'z'"),
        ({"type": "number", "minimum": 0.5}, "/minimum: 0.5"),
        ({"anyOf": [{"const": "a"}, {"type": "string"}]}, "begin alike"),
        ({"enum": ["a"], "type": "integer"}, "/enum: the rest"),
        ({"type": "text"}, "not a JSON Schema"),
        ({"type": "integer", "minimum": 4, "maximum": 3}, "no number lies between"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "/minLength"),
        ({}, "no type, enum or const"),
        ({"$ref": "#/$defs/none"}, "is not in the schema"),
        ({"enum": ["a", float("inf")]}, "/enum/1: Infinity is not a number in JSON"),
        ({"type": "object", "properties": {"a": {"const": [float("nan")]}}}, "/properties/a/const/0: NaN is not"),
        ({"type": "integer", "minimum": float("-inf")}, "/minimum: -Infinity is not a number in JSON"),
        ({"type": "number", "maximum": float("inf")}, "/maximum: Infinity is not a number in JSON"),
        ({"type": "integer", "minimum": 1e300}, "more than 15 digits"),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 1e300}, "too many forms"),
        ({"const": "x" * 30_000}, "too many forms"),
        (reduce(lambda inner, _: {"anyOf": [inner]}, range(400), {"type": "null"}), "nested deeper than 96"),
        ({"enum": ["a"], "allOf": [{"$ref": "#/none"}]}, "/enum: whether the rest of the schema allows it"),
        ({"default": {"type": 5}, "$ref": "#/default"}, "not a JSON Schema"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_path(schema, words):
    with pytest.raises(UserError) as refused:
        _automaton.compile_schema(schema)
    assert words in str(refused.value)


def behind(automaton, text):
    return reduce(lambda state, byte: automaton.edges[state].get(byte, 0), text.encode(), automaton.start)


@pytest.mark.parametrize(
    ("schema", "others"),
    [
        ({"const": LONG}, {}),
        ({"enum": [LONG, LONG + "a", LONG[:-1]]}, {"maxLength": 5_000}),
        ({"anyOf": [{"const": LONG}, {"const": LONG[:-1] + "x"}]}, {}),
        ({"type": "object", "properties": {LONG: {"type": "null"}, LONG + "a": {"const": 1}}}, {}),
    ],
)
def test_texts_of_thousands_of_characters_are_kept(schema, others):
    automaton = _automaton.compile_schema(schema | others)
    check = jsonschema.Draft202012Validator(schema)
    texts = [LONG, LONG + "a", LONG[:-1], LONG[:-1] + "x", LONG[:-1] + "y"]
    values = [*texts, {}, {LONG: None}, {LONG + "a": 1}, {LONG: None, LONG + "a": 1}, {LONG: 1}]
    held = [automaton.final[behind(automaton, to_json(value))] for value in values]
    assert held == [check.is_valid(value) for value in values] and 0 < sum(held) < len(values)


def test_a_long_text_is_written_token_by_token():
    guarantee = guarantee_of("small", json.dumps({"const": LONG}), 1_500)
    [ids] = written("small", 1, 1.5, lambda step: torch.zeros(1, KINDS["small"]), guarantee, 1_500)
    assert problem_of("small", ids, {"const": LONG}) is None


def test_counts_may_be_written_as_floats():
    floats = {"type": "array", "items": {"type": "null"}, "minItems": 1.0, "maxItems": 2.0}
    automaton = _automaton.compile_schema(floats)
    held = [n for n in range(5) if automaton.final[behind(automaton, to_json([None] * n))]]
    assert held == [1, 2]
    automaton = _automaton.compile_schema({"type": "string", "minLength": 2.0, "maxLength": 3.0})
    assert _automaton.closed(automaton, '"a') == '"a."' and automaton.bounds[1] == (2, 3)


@pytest.mark.parametrize(("low", "high"), [(-1205, -13), (0, 0), (7, 7), (-9, 9), (98, 1002), (-3000, 12)])
def test_whole_numbers_between_bounds_are_all_there_and_no_others(low, high):
    automaton = _automaton.compile_schema({"type": "integer", "minimum": low, "maximum": high})
    held = {number for number in range(-4000, 4000) if automaton.final[behind(automaton, str(number))]}
    assert held == set(range(low, high + 1)) and not behind(automaton, "-0") and not behind(automaton, "00")


def test_counters_of_the_tables_are_those_of_the_bytes():
    """Two ways to the same place: token by token through the tables, byte by byte through the automaton."""
    guarantee = guarantee_of("small")
    rng = random.Random(1)
    for ids in written("small", 30, 1.5, random_model("small", 30, 9), guarantee):
        cut = rng.randint(1, len(ids) - 1)
        rows = guarantee.rows(1)
        for token in ids[:cut]:
            rows = guarantee.advanced(rows, torch.tensor([token]))
        place = int(rows.state[0]), int(rows.counter[0])
        assert place == guarantee.behind(ids[:cut]) and int(rows.left[0]) == BUDGET - cut
        assert place == guarantee.behind(ids[cut // 2 : cut], guarantee.behind(ids[: cut // 2]))
