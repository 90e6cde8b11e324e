"""Large files become token ids in several processes, as one process makes them."""

import json
import os

import pytest

import dataset
from common import ROOT, UserError, WorkFailed
from config import load_config
from language_model import chat_template
from training import encoding


@pytest.fixture(scope="module")
def config():
    return load_config(ROOT / "configs" / "steward_mini.yaml", ["train.max_seq_len=64"])


@pytest.fixture(scope="module")
def chat(config):
    return chat_template.load_chat(config)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompts(n):
    """Every fourth is too long."""
    return [
        {
            "id": str(at),
            "prompt": [{"role": "user", "content": "word " * (100 if at % 4 == 0 else at)}],
            "completion": [{"role": "assistant", "content": '{"result": "POSSIBLE"}'}],
        }
        for at in range(n)
    ]


def test_several_processes_make_what_one_makes(tmp_path, monkeypatch, config, chat):
    write_lines(tmp_path / "rows.jsonl", prompts(9))
    monkeypatch.setattr(encoding, "ROWS_A_PIECE", 4)
    alone = encoding.encode_file(tmp_path / "rows.jsonl", chat, config)
    monkeypatch.setattr(encoding, "ROWS_WORTH_PROCESSES", 1)
    monkeypatch.setattr(encoding, "usable_cores", lambda: 2)
    data, left_out = encoding.encode_file(tmp_path / "rows.jsonl", chat, config)
    expected, expected_out = dataset.encode_rows(prompts(9), chat, config)
    assert [row["id"] for row in left_out] == ["0", "4", "8"] and left_out == expected_out == alone[1]
    for found in (data, alone[0]):
        assert list(found) == [{key: row[key] for key in ("input_ids", "labels")} for row in expected]


def test_a_broken_line_is_named_whichever_process_meets_it(tmp_path, monkeypatch, config, chat):
    write_lines(tmp_path / "rows.jsonl", [*prompts(5), {"id": "5"}])
    monkeypatch.setattr(encoding, "ROWS_A_PIECE", 4)
    monkeypatch.setattr(encoding, "ROWS_WORTH_PROCESSES", 1)
    monkeypatch.setattr(encoding, "usable_cores", lambda: 2)
    with pytest.raises(UserError, match=r"rows\.jsonl:6: not a prompt row"):
        encoding.encode_file(tmp_path / "rows.jsonl", chat, config)


class Deadly:
    """Ends the process that unpickles it, as the system ends one that took too much memory."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_is_ended_ends_the_run(tmp_path, monkeypatch, config):
    write_lines(tmp_path / "rows.jsonl", prompts(3))
    monkeypatch.setattr(encoding, "ROWS_WORTH_PROCESSES", 1)
    monkeypatch.setattr(encoding, "usable_cores", lambda: 2)
    with pytest.raises(WorkFailed, match="was ended, perhaps for want of memory"):
        encoding.encode_file(tmp_path / "rows.jsonl", Deadly(), config)
