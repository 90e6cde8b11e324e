"""Every core trains on a CPU, unless the user says how many."""

import os
import subprocess
import sys

import pytest
import torch

from support.pipeline import ROOT
from training import processes

CHILD = (
    f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); from training import processes; "
    "print(processes.launcher_set_threads())"
)
PARENT = (
    "import os, subprocess, sys; "
    "subprocess.run([sys.executable, '-c', {child!r}], env=os.environ | {{'OMP_NUM_THREADS': '1'}})"
)


@pytest.mark.parametrize(("own", "is_the_launchers"), [({}, "True"), ({"OMP_NUM_THREADS": "1"}, "False")])
def test_a_number_that_only_the_launcher_set_is_not_the_users(own, is_the_launchers):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | own
    parent = [sys.executable, "-c", PARENT.format(child=CHILD)]
    found = subprocess.run(parent, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == is_the_launchers


@pytest.mark.parametrize(
    ("variables", "launchers", "processes_here", "n_threads"),
    [
        ({}, False, 1, 8),
        ({"OMP_NUM_THREADS": "1"}, True, 1, 8),
        ({"OMP_NUM_THREADS": "1"}, True, 4, 2),
        ({"OMP_NUM_THREADS": "1"}, False, 1, None),
    ],
    ids=["no variable", "the launcher's", "shared by four processes", "the user's"],
)
def test_threads(variables, launchers, processes_here, n_threads, monkeypatch):
    found = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in (variables | {"LOCAL_WORLD_SIZE": str(processes_here)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "launcher_set_threads", lambda: launchers)
    monkeypatch.setattr(processes, "usable_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    processes.use_every_core()
    assert found == ([n_threads] if n_threads else [])
