"""Spans between two times of day, as requests of six languages write them."""

import pytest

from tasks import load_task
from tasks.qod import synthetic
from tasks.qod.clock_reading import MOST_SPANS, spans, with_spans

TASK = load_task("qod")


@pytest.mark.parametrize(
    ("text", "begin", "end", "seconds"),
    [
        ("from 22:30 to 00:15", "22:30", "00:15", 6_300),
        ("tonight 4.15 pm through 5.00 pm", "16:15", "17:00", 2_700),
        ("from 9am until 11am", "09:00", "11:00", 7_200),
        ("9-11 pm", "21:00", "23:00", 7_200),
        ("from 11 to 1 am", "23:00", "01:00", 7_200),
        ("22:00 to 1 am", "22:00", "01:00", 10_800),
        ("2:30-4:15 p.m.", "14:30", "16:15", 6_300),
        ("12.00 am to 12.30 pm", "00:00", "12:30", 45_000),
        ("starting 16:45 hrs and ending 04:30 hrs", "16:45", "04:30", 42_300),
        ("ab 13.45 Uhr und bis 19.15 Uhr", "13:45", "19:15", 19_800),
        ("von 8 Uhr bis 9 Uhr 30", "08:00", "09:30", 5_400),
        ("de 20h à 23h30", "20:00", "23:30", 12_600),
        ("18 h 15 ; 22 h 00", "18:15", "22:00", 13_500),
        ("von 9 bis 17:30 Uhr", "09:00", "17:30", 30_600),
        ("from 14 through 18:30.", "14:00", "18:30", 16_200),
        ("de 6 h 45 à 9 h 20", "06:45", "09:20", 9_300),
        ("slot:18:30-20:00", "18:30", "20:00", 5_400),
        ("dalle 18.00 alle 24.00", "18:00", "00:00", 21_600),
        ('[2028-04-05T21:39:45Z] window="6.30 pm - 10.40 pm"', "18:30", "22:40", 15_000),
    ],
)
def test_spans_are_read(text, begin, end, seconds):
    assert spans(text) == [f"{begin} to {end} = {seconds} s"]


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.59:18:30 and 2001:db8::10:20",
        "on 20.05.2030 and on 14.02.2031",
        "1 h 30 min and 2 h 15 min",
        "+49 18 30 20 15 for PT2H",
        "ports 80 to 443 at 10.50 Mbit/s",
        "the numbers 12 to 10.20.30.40, then 11.15 pm",
        "2001:db8::be:18:30 to 20:00",
        "until 17:00",
        "between 7 and 9",
        "23:00 - 23:00",
        "13 pm to 25:00",
        "18:00, and so much about that; the other thing is due at 20:00",
    ],
)
def test_what_is_no_span_is_left_alone(text):
    assert spans(text) == []


def test_a_long_list_of_times_is_cut():
    assert len(spans(", ".join(["08:00 to 09:00"] * 20))) == MOST_SPANS


def test_the_note_stands_in_the_prompt_and_not_in_the_row():
    request = "QoS M for +49 151 23456789 to 198.51.100.7, 18:30 to 20:00"
    written = TASK.messages({"request": request})[1]["content"]
    assert written == with_spans(request) == f"{request}\n\n[18:30 to 20:00 = 5400 s]"
    assert with_spans("for two hours") == "for two hours"


def test_a_note_says_what_the_generator_means():
    said = wrong = 0
    for row in synthetic.rows(1_500, 3, recipe=synthetic.Recipe("test")):
        if "duration" in row["output"] and (found := spans(row["input"]["request"])):
            said += 1
            wrong += all(f" {row['output']['duration']} s" not in one for one in found)
    assert said > 200
    assert wrong < 0.02 * said
