"""`make setup` and the targets that build their own environment, with stand-ins for pip and conda that write down what
they are asked.
"""

import os
import stat
import subprocess
import time

import pytest
import yaml

from support.pipeline import ROOT, copy_of_the_repo
from support.warm_python import QUIET, warm_python

PYTHON = """#!/bin/sh
# A python3 whose venvs are links to itself and whose pip only notes what it should install.
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip "*) echo "pip $*" >> "$NOTES"; [ -z "$PIP_FAILS" ] ;;
  *) exec {python} "$@" ;;
esac
"""
CONDA = """#!/bin/sh
echo "conda $*" >> "$NOTES"
case "$1" in
  env) mkdir -p "$PREFIX/bin"; ln -sf {python} "$PREFIX/bin/python" ;;
  run) shift 3; shift; case "$*" in "-m pip "*) [ -z "$PIP_FAILS" ] ;; *) echo "$PREFIX/bin" ;; esac ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    return copy_of_the_repo(tmp_path / "repo")


def programs(folder, **scripts):
    """A PATH that starts with these programs."""
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name
        path.write_text(text.replace("{python}", warm_python()))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"{folder}:/usr/bin:/bin"


def make(project, target, path, **variables):
    environment = {
        "PATH": path,
        "NOTES": str(project / "notes"),
        "PREFIX": str(project / "prefix"),
        "HOME": os.environ["HOME"],
        **QUIET,
        **variables,
    }
    return subprocess.run(["make", target], cwd=project, env=environment, capture_output=True, text=True)


def notes(project):
    path = project / "notes"
    return path.read_text().splitlines() if path.exists() else []


def test_venv_where_there_is_no_conda(project, tmp_path):
    path = programs(tmp_path / "bin", python3=PYTHON)
    result = make(project, "setup", path)
    assert result.returncode == 0, result.stderr
    assert ".venv/bin/python" in result.stdout
    assert [note for note in notes(project) if "requirements.txt" in note]
    assert "making .venv" not in make(project, "setup", path).stdout, "the second setup does nothing"
    assert len(notes(project)) == 1


def test_gpu_host_gets_the_server_too(project, tmp_path):
    path = programs(tmp_path / "bin", python3=PYTHON, **{"nvidia-smi": "#!/bin/sh\necho GPU 0\n"})
    assert make(project, "setup", path).returncode == 0
    assert "requirements-gpu.txt" in notes(project)[0]


def test_conda_where_it_is_present(project, tmp_path):
    path = programs(tmp_path / "bin", conda=CONDA, python3=PYTHON)
    result = make(project, "setup", path)
    assert result.returncode == 0, result.stderr
    assert notes(project)[0] == "conda env update --name crm-dedup-llm --file env.yml --prune"
    assert (project / ".env" / "bin").read_text().strip() == str(project / "prefix" / "bin")
    assert not (project / ".venv").exists()


def test_a_failed_install_is_tried_again(project, tmp_path):
    path = programs(tmp_path / "bin", python3=PYTHON)
    assert make(project, "setup", path, PIP_FAILS="1").returncode != 0
    assert not (project / ".env" / "bin").exists()
    assert make(project, "setup", path).returncode == 0


@pytest.mark.parametrize("conda", [False, True])
def test_a_failed_update_leaves_the_old_environment_and_is_tried_again(project, tmp_path, conda):
    path = programs(tmp_path / "bin", python3=PYTHON, **({"conda": CONDA} if conda else {}))
    assert make(project, "setup", path).returncode == 0
    old = (project / ".env" / "bin").read_text()
    os.utime(project / "requirements.txt", (time.time() + 1, time.time() + 1))
    assert make(project, "setup", path, PIP_FAILS="1").returncode != 0
    assert (project / ".env" / "bin").read_text() == old
    before = len(notes(project))
    os.utime(project / "requirements.txt")
    os.utime(project / ".env" / "bin", (1, 1))
    assert make(project, "setup", path).returncode == 0
    assert len(notes(project)) > before


def test_other_targets_set_up_by_themselves(project, tmp_path):
    path = programs(tmp_path / "bin", python3=PYTHON)
    make(project, "prep", path)
    assert (project / ".env" / "bin").exists()
    assert (project / "data" / "processed" / "manifest.json").exists()


def test_an_unfit_python_is_named(project, tmp_path):
    old = "#!/bin/sh\nexit 1\n"
    path = programs(tmp_path / "bin", python3=old, **{"python3.12": old, "python3.11": old})
    result = make(project, "setup", path)
    assert result.returncode != 0 and "Python 3.11 or 3.12 is needed" in result.stderr


def test_pins_stand_in_one_place():
    conda = yaml.safe_load((ROOT / "env.yml").read_text())
    assert conda["name"] == "crm-dedup-llm" and "python=3.12" in conda["dependencies"]
    assert conda["dependencies"][-1] == {"pip": ["-r requirements.txt"]}
    gpu = [
        line for line in (ROOT / "requirements-gpu.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert gpu == ["-r requirements.txt", "vllm==0.32.0"]
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(pins) >= 15 and all("==" in pin for pin in pins)


def test_docker_image_uses_the_same_pins_and_make():
    text = (ROOT / "Dockerfile").read_text()
    assert "requirements-gpu.txt" in text and "PY=/opt/venv/bin/python" in text
