"""The review page as a steward uses it, in a browser without a window: by keyboard, on a phone's width, with a reader's
eyes.
"""

import contextlib
import json
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
from prometheus_client import Counter

import review_export
import review_verify
from constrained_decode import Answer
from service import metrics
from service.review import chain, decisions
from support import letters
from support.chromium import BROWSER, started
from support.pipeline import exit_code
from support.serving import Model, running
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no Chromium here")]
TASK = load_task()
SENTENCES = {
    "DUPLICATE": "Clear duplicate: name and phone match.",
    "POSSIBLE": "Needs review: name matches; city differs.",
    "NO_MATCH": "No match: name differs.",
}
HANGS_OUT = """[...document.querySelectorAll("body *")]
    .filter((one) => one.getBoundingClientRect().right > window.innerWidth + 1)
    .filter((one) => !one.closest(".hidden")).map((one) => one.outerHTML.slice(0, 90))"""
NASTY = "<img src=x onerror=alert(1)> & <b>bold</b> \"' \u202e"


class Judge(Model):
    """Gives every verdict in turn, each pair less certain than the one before."""

    def answers(self, conversations):
        for at, messages in enumerate(conversations):
            n = int(json.loads(messages[-1]["content"])["record1"].get("number", 0))
            result = TASK.verdict.labels[n % 3]
            share = 0.95 - n / 100
            shares = {label: share if label == result else (1 - share) / 2 for label in TASK.verdict.labels}
            yield (
                at,
                Answer(
                    TASK.completion({"result": result, "reasoning": SENTENCES[result]}), "stop", 50, 20, shares, 0.01
                ),
            )


def pairs(n, n_fields=0):
    more = {f"field_{at}": f"value {at}" for at in range(n_fields)}
    for at, row in enumerate(synthetic_rows(n, 9)):
        yield {
            "id": f"pair-{at}",
            "record1": row["input"]["record1"]
            | {"number": at, "name": f"Ann Lee {at} {NASTY if at == 0 else ''}", "city": "Rome"}
            | more,
            "record2": row["input"]["record2"] | {"number": at, "name": f"Anne Leigh {at}", "city": "Roma"} | more,
        }


@pytest.fixture(scope="module")
def browser():
    with started() as browser:
        yield browser


@pytest.fixture
def review(tmp_path, monkeypatch, browser):
    """A page of a service with so many pairs to review, and the errors that its console showed."""
    with contextlib.ExitStack() as stack:

        def start(n=20, width=1280, height=900, scheme="light", n_fields=0, **settings):
            (tmp_path / "pairs.jsonl").write_text(
                "".join(json.dumps(pair) + "\n" for pair in pairs(n, n_fields)), encoding="utf-8"
            )
            files = {"review_folder": str(tmp_path / "reviews"), "review_cases": str(tmp_path / "pairs.jsonl")}
            client = stack.enter_context(running(Judge(), monkeypatch, **files, **settings))
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            errors = []
            stack.callback(page.close)
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("dialog", lambda dialog: errors.append(f"a record ran a script: {dialog.message}"))
            page.goto(str(client.base_url))
            return page, errors, client

        yield start


def shows(page, selector, words):
    """Wait until an element's text begins with these words."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(re.compile(f"^{re.escape(words)}"), timeout=10_000)


def ready(page, n_decided=0):
    shows(page, "#progress-words", f"{n_decided} of ")
    page.wait_for_selector("#card:not([hidden])")


def all_answered(page, client, n):
    page.wait_for_timeout(300)
    for _ in range(100):
        if client.get("/review/statistics").json()["progress"]["answered"] == n:
            page.reload()
            return
        page.wait_for_timeout(100)
    raise AssertionError("the pairs were not answered")


def test_twenty_pairs_are_reviewed_by_keyboard_corrected_undone_exported_and_verified(review, tmp_path, capsys):
    page, errors, client = review(20)
    all_answered(page, client, 20)
    ready(page)
    page.fill("#reviewer", "kim")
    page.keyboard.press("Tab")
    page.locator("#card").focus()
    seen = []
    for at in range(20):
        ready(page, at)
        seen.append(page.inner_text("#card-title").partition("(")[2].rstrip(")"))
        said = page.inner_text("#model-result")
        if at in (4, 9, 14):
            page.keyboard.press(str(1 + (TASK.verdict.labels.index(said) + 1) % 3))
            page.wait_for_selector("#correction:not([hidden])")
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Enter")
        else:
            page.keyboard.press("Enter")
        shows(page, "#progress-words", f"{at + 1} of 20")
        if at == 11:
            page.keyboard.press("u")
            ready(page, 11)
            assert page.inner_text("#card-title").endswith(f"({seen[-1]})"), (
                "the pair that was taken back is shown again"
            )
            page.keyboard.press("Enter")
            shows(page, "#progress-words", "12 of 20")
    shows(page, "#message", "All pairs are decided.")
    assert seen == [f"pair-{at}" for at in reversed(range(20))], "least certain first"
    shows(page, "#statistics", "20 decided, 85.0 % as the model said")
    assert page.locator("#statistics tbody tr").count() == 3
    assert errors == []
    path = tmp_path / "reviews" / "decisions.jsonl"
    entries = list(chain.read(path))
    assert (
        [entry["action"] for entry in entries].count("correct") == 3
        and [entry["action"] for entry in entries].count("undo") == 1
        and len(entries) == 22
    )
    assert all(entry["reason"] for entry in entries if entry["action"] == "correct") and all(
        entry["seconds"] >= 0 for entry in entries if "seconds" in entry
    )
    assert exit_code(review_verify, "--decisions", path) == 0 and "22 decisions" in capsys.readouterr().out
    assert exit_code(review_export, "--decisions", path, "--no_test", "--out", tmp_path / "out") == 0
    assert (
        "20 rows" in capsys.readouterr().out
        and len((tmp_path / "out/preference_pairs.jsonl").read_text().splitlines()) == 3
    )


def test_the_keys_answer_while_the_statistics_are_under_way(review):
    page, errors, client = review(4)
    all_answered(page, client, 4)
    ready(page)
    page.fill("#reviewer", "kim")
    page.locator("#card").focus()
    page.route("**/review/statistics", lambda _: None)
    for key, n_decided in (("Enter", 1), ("Enter", 2), ("u", 1), ("Enter", 2), ("s", 2), ("Enter", 3)):
        title = page.inner_text("#card-title")
        page.keyboard.press(key)
        shows(page, "#progress-words", f"{n_decided} of 4")
        page.wait_for_function("title => document.getElementById('card-title').textContent !== title", arg=title)
    assert errors == []


def test_records_are_shown_as_text_and_differences_are_marked(review):
    page, errors, client = review(1)
    ready(page)
    row = page.locator("#rows tr", has_text="name").first
    assert NASTY.split(">")[0] in row.inner_text() and page.locator("#rows img, #rows b").count() == 0
    assert row.locator("mark").count() > 0 and page.locator("#rows .chip").count() == page.locator("#rows tr").count()
    n_rows = page.locator("#rows tr").count()
    page.locator("#card").focus()
    page.keyboard.press("d")
    assert (
        page.locator("#rows tr").count() < n_rows
        and "hidden" in page.inner_text("#hidden-rows")
        and "= same" not in page.inner_text("#rows")
    )
    page.locator("#sentence a").first.click()
    assert page.locator("#rows tr.pointed").count() == 1 and errors == []


def test_blind_mode_hides_the_verdict_until_there_is_one(review, tmp_path):
    page, errors, client = review(3)
    all_answered(page, client, 3)
    page.fill("#reviewer", "kim")
    page.check("#blind")
    ready(page)
    assert page.locator("#verdict").is_hidden() and "models" not in page.inner_html("#choices")
    page.locator("#card").focus()
    page.keyboard.press("Enter")
    assert "choose with 1, 2 or 3" in page.inner_text("#message")
    # The first pair's verdict stood there before Blind was checked, the second's never; the third's is seen, and
    # changed, after a choice that differed.
    for n_decided in (1, 2):
        page.keyboard.press("1")
        page.wait_for_timeout(300)
        if page.locator("#correction").is_visible():
            page.keyboard.press("Enter")
        shows(page, "#progress-words", f"{n_decided} of 3")
        assert "the model said" in page.inner_text("#message")
    model = client.post("/review/next", json={"reviewer": "kim"}).json()["card"]["result"]
    differs = next(key for key, label in zip("123", TASK.verdict.labels, strict=True) if label != model)
    page.keyboard.press(differs)
    page.wait_for_selector("#correction:not([hidden])")
    assert page.locator("#verdict").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press(str(TASK.verdict.labels.index(model) + 1))
    shows(page, "#progress-words", "3 of 3")
    assert [entry["blind"] for entry in chain.read(tmp_path / "reviews/decisions.jsonl")] == [
        False,
        True,
        False,
    ] and errors == []


def test_a_correction_needs_a_reason_and_what_nobody_compares_is_shown(review, tmp_path):
    page, _, client = review(1)
    all_answered(page, client, 1)
    page.fill("#reviewer", "kim")
    page.locator("#reviewer").press("Enter")
    assert page.evaluate("document.activeElement.id") == "card"
    page.keyboard.press("3")
    page.wait_for_selector("#correction:not([hidden])")
    assert page.input_value("#reason") == "other person, near name"
    page.select_option("#reason", "")
    page.keyboard.press("Enter")
    assert "Say why" in page.inner_text("#message") and not (tmp_path / "reviews/decisions.jsonl").read_bytes()
    page.fill("#reason-words", "a namesake")
    page.locator("#reason-words").press("Enter")
    shows(page, "#message", "All pairs are decided.")
    assert next(chain.read(tmp_path / "reviews/decisions.jsonl"))["reason"] == "a namesake"
    assert page.locator("#undo").is_visible() and page.locator("#help-button").is_visible()


def test_nothing_is_decided_without_a_name(review, tmp_path):
    page, _, client = review(1)
    ready(page)
    page.locator("#card").focus()
    page.keyboard.press("Enter")
    assert (
        "Give your name first" in page.inner_text("#message")
        and not (tmp_path / "reviews/decisions.jsonl").read_bytes()
    )


def test_a_decision_that_cannot_be_kept_is_told_and_the_pair_stays(review, monkeypatch):
    page, _, client = review(1)
    ready(page)
    page.fill("#reviewer", "kim")
    page.locator("#card").focus()
    monkeypatch.setattr(decisions.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    page.keyboard.press("Enter")
    page.wait_for_selector("#message.error")
    assert "could not be kept: No space left" in page.inner_text("#message") and page.inner_text(
        "#progress-words"
    ).startswith("0 of 1")


def test_a_key_is_asked_for_where_one_is_wanted(review):
    from service.settings import hash_of_key

    page, _, client = review(1, key_hashes=(hash_of_key("a-long-enough-key"),))
    page.wait_for_selector("#key-label:not([hidden])")
    page.fill("#key", "a-long-enough-key")
    page.keyboard.press("Tab")
    ready(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_it_fits_a_desk_and_a_phone_and_reads_well(review, tmp_path, width, height, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page, errors, client = review(3, width, height, scheme)
    all_answered(page, client, 3)
    ready(page)
    page.fill("#reviewer", "kim")
    page.locator("#card").focus()
    page.keyboard.press("Enter")
    ready(page, 1)
    for state in ("verdict", "correction", "help"):
        if state == "correction":
            said = page.inner_text("#model-result")
            page.keyboard.press(str(1 + (TASK.verdict.labels.index(said) + 1) % 3))
            page.wait_for_selector("#correction:not([hidden])")
        elif state == "help":
            page.click("#back")
            page.keyboard.press("?")
            page.wait_for_selector("dialog[open]")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        wide = page.evaluate(HANGS_OUT)
        assert not wide, f"{state}: hangs out to the side: {wide[:4]}"
        page.screenshot(path=tmp_path / f"{state}.png", full_page=True)
    assert errors == []
    kept = Path(os.environ.get("STEWARD_SCREENS", "nowhere"))
    if kept.is_dir():
        for state in ("verdict", "correction", "help"):
            shutil.copy(tmp_path / f"{state}.png", kept / f"{width}_{scheme}_{state}.png")


def test_on_a_phone_the_decision_is_in_reach_however_many_fields_there_are(review):
    page, errors, client = review(2, 390, 844, n_fields=20)
    all_answered(page, client, 2)
    ready(page)
    bottoms = (
        "[...document.querySelectorAll('#choices button, #skip')].map((one) => one.getBoundingClientRect().bottom)"
    )
    assert page.evaluate("document.documentElement.scrollHeight") > 1_300 and page.evaluate("window.scrollY") == 0
    assert len(page.evaluate(bottoms)) == 4 and max(page.evaluate(bottoms)) <= 844
    assert min(page.evaluate(bottoms)) > 600, "the fields are seen, not the buttons alone"
    said = page.inner_text("#model-result")
    page.fill("#reviewer", "kim")
    page.click(f"#choices button:has-text('{said}')")
    ready(page, 1)
    said = page.inner_text("#model-result")
    page.click(f"#choices button:not(:has-text('{said}'))")
    page.wait_for_selector("#correction:not([hidden])")
    page.select_option("#reason", index=0)
    page.click("#correction button[type=submit]")
    shows(page, "#progress-words", "2 of 2 pairs decided")
    assert errors == []


def test_the_count_is_explained(review):
    page, _, client = review(3)
    all_answered(page, client, 3)
    ready(page)
    shows(page, "#progress-words", "0 of 3 pairs decided")
    counted = "Each pair counts once, and is decided when a steward has accepted or corrected it; "
    shows(page, "#progress-note", f"{counted}3 left.")
    page.fill("#reviewer", "kim")
    page.locator("#card").focus()
    page.keyboard.press("s")
    shows(page, "#progress-note", f"{counted}1 skipped, to come again at the end; 3 left.")


def test_a_pair_shown_before_there_was_a_name_is_exchanged_where_somebody_else_has_it(review):
    page, errors, client = review(2)
    all_answered(page, client, 2)
    ready(page)
    first = page.inner_text("#card-title")
    lees = client.post("/review/next", json={"reviewer": "lee"}).json()["card"]["id"]
    assert lees in first
    page.fill("#reviewer", "kim")
    page.locator("#card").focus()
    page.wait_for_function("title => document.getElementById('card-title').textContent !== title", arg=first)
    assert client.post("/review/next", json={"reviewer": "max"}).json()["card"] is None and errors == []


def test_another_tasks_verdicts_are_reviewed_in_its_own_words(browser, tmp_path, monkeypatch):
    count = lru_cache(lambda key: Counter("steward_letters_total", "Answers by mood", [key]))
    monkeypatch.setattr(metrics, "verdicts", count)
    task = letters.loaded(monkeypatch, tmp_path / "tasks")
    engine = Model(task.completion(letters.ANGRY), shares=letters.SHARES)
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    with running(engine, monkeypatch, task="moods", review_folder=str(tmp_path / "r"), keep_traffic=True) as client:
        client.post("/answer", json={"text": "WHERE IS IT?"})
        page.goto(str(client.base_url))
        ready(page)
        assert page.inner_text("#card-title") == "The mood of a letter"
        assert page.locator("#heads th").all_inner_texts() == ["Field", "Value"]
        assert page.locator("#rows td").all_inner_texts() == ["WHERE IS IT?"]
        assert page.inner_text("#model-result") == "angry" and page.inner_text("#sentence") == "It shouts."
        assert page.locator("#choices button").count() == 3 and page.locator("#differences").is_hidden()
        page.fill("#reviewer", "kim")
        page.locator("#card").focus()
        page.keyboard.press("3")
        page.wait_for_selector("#correction:not([hidden])")
        page.select_option("#reason", label="the model misread the letter")
        page.click("#correction button[type=submit]")
        shows(page, "#message", "All letters are decided.")
    page.close()
    [entry] = chain.read(tmp_path / "r" / "decisions.jsonl")
    assert entry["mood"] == "unclear" and entry["model_mood"] == "angry"
    assert entry["reason"] == "the model misread the letter" and entry["model_answer_reason"] == "It shouts."
    assert errors == []
