"""The list of wrong answers as a reader sees it, in a browser without a window."""

import pytest

from support import small_tasks
from support.chromium import BROWSER, started
from support.reporting import Bench, answered, scored

FILTERS = {"model", "gold", "predicted", "slice", "sort", "text"}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no Chromium here")]


@pytest.fixture(scope="module")
def browser():
    with started() as browser:
        yield browser


@pytest.fixture
def opened(tmp_path, monkeypatch, browser):
    """A function from a measurement to its page, which may show no error."""
    errors = []

    def start(measured, task):
        bench = Bench(tmp_path, monkeypatch, (measured,) * 3)
        bench.put("phi4mini", bench.good)
        bench.make(task)
        page = browser.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((bench.reports / "index.html").as_uri())
        return page

    yield start
    assert errors == []


def shown_filters(page):
    return {
        name
        for name in ("model", "gold", "predicted", "slice", "sort", "text")
        if page.locator(f"#{name}").is_visible()
    }


def test_verdicts_are_filtered_and_shown_with_both_records(opened):
    page = opened(scored(9), "crm")
    assert shown_filters(page) == FILTERS
    assert page.locator("#list .entry").count() == 9
    first = page.locator("#list .entry").first
    assert first.locator(".pair thead th").all_inner_texts() == ["field", "record1", "record2", "relation"]
    doubted = page.locator("#list .entry", has=page.locator(".doubted"))
    assert doubted.count() > 0 and doubted.first.locator(".doubted").inner_text() == "email"
    assert "email (stated: same; compared: " in doubted.first.inner_text()
    gold = page.locator("#gold option").nth(1).get_attribute("value")
    page.select_option("#gold", gold)
    assert 0 < page.locator("#list .entry").count() < 9
    assert f"gold {gold}, predicted " in page.locator("#list .entry h3").first.inner_text()


@pytest.mark.parametrize("name", small_tasks.NAMES)
def test_other_answers_stand_beside_the_gold_one(opened, monkeypatch, name):
    from playwright.sync_api import expect

    task = small_tasks.loaded(monkeypatch, name)
    page = opened(answered(task, row0="", row3="qqqq"), name)
    assert shown_filters(page) == {"model", "text"}
    entries = page.locator("#list .entry")
    assert entries.count() == 2
    assert entries.first.locator(".pair thead th").all_inner_texts() == ["field", "gold", "answer", "relation"]
    assert entries.first.locator(".question").inner_text()
    page.fill("#text", "qqqq")
    expect(entries).to_have_count(1)
