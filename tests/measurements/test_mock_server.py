"""The mock server that answers are posted to: started, asked and stopped, and what it says where that fails."""

import socket
import sys

import pytest

from common import UserError, WorkFailed
from measurements import _mock_server
from support import fake_npx

API = {"info": {"title": "t"}, "paths": {"/sessions": {"post": {"callbacks": {"notify": {}}}}}}
BODY = '{"duration":1}'


@pytest.fixture
def path_to_npx(tmp_path, monkeypatch):
    """A folder in the place of PATH, with an npx that starts the stand-in for Prism."""
    npx = tmp_path / "npx"
    npx.write_text(f'#!/bin/sh\nexec {sys.executable} -E {fake_npx.__file__} "$@"\n', encoding="utf-8")
    npx.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return npx


def test_bodies_are_answered_in_order_and_the_server_ends_with_the_block(path_to_npx):
    with _mock_server.mock_server(API) as server:
        replies = server.replies("/sessions", [BODY, "{}", BODY, *["{}"] * 30])
        elsewhere = server.reply("/elsewhere", BODY)
        address = ("127.0.0.1", server.client.base_url.port)
    assert [reply.is_accepted for reply in replies] == [True, False, True, *[False] * 30]
    assert (replies[0].status, replies[0].why) == (201, "")
    assert (replies[1].status, replies[1].why) == (422, "Request body must have a duration")
    assert (elsewhere.status, elsewhere.why) == (404, "hello")
    with pytest.raises(ConnectionRefusedError), socket.create_connection(address, timeout=5):
        pass


def test_without_npx_it_says_what_to_install(path_to_npx):
    path_to_npx.unlink()
    with pytest.raises(UserError, match=r"npx: no such command; install Node.js"), _mock_server.mock_server(API):
        pass


def test_a_package_that_cannot_be_fetched_is_named_with_what_npx_said(path_to_npx, monkeypatch):
    monkeypatch.setenv("FAKE_NPX", "refuses")
    wanted = r"(?s)prism-cli@[\d.]+, .* ended with code 1 .*npm error 404"
    with pytest.raises(WorkFailed, match=wanted), _mock_server.mock_server(API):
        pass


def test_a_server_that_never_answers_is_not_waited_for_without_end(path_to_npx, monkeypatch):
    monkeypatch.setenv("FAKE_NPX", "deaf")
    monkeypatch.setattr(_mock_server, "READY_WITHIN_S", 0.3)
    with pytest.raises(WorkFailed, match=r"not ready within 0.3 s"), _mock_server.mock_server(API):
        pass


def test_a_server_that_dies_meanwhile_is_said(path_to_npx):
    with pytest.raises(WorkFailed, match="the mock server gave no answer"), _mock_server.mock_server(API) as server:
        server.replies("/sessions", [BODY, "die"])
