"""The image's lock: in step with the pins, each file by its hash, written from what pip says."""

import json
import re

import pytest

import lock_image
from common import ROOT
from support.pipeline import exit_code

LOCK = ROOT / "requirements-image.lock"
HASH = "a" * 64


def package(name, hashes):
    return {
        "metadata": {"name": name, "version": "1.0"},
        "download_info": {"url": f"https://index.example/{name}.whl", "archive_info": {"hashes": hashes}},
    }


def written(tmp_path, packages):
    report = {
        "environment": {"python_version": "3.12", "sys_platform": "linux", "platform_machine": "x86_64"},
        "install": packages,
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    return exit_code(lock_image, "--report", tmp_path / "report.json", "--out", tmp_path / "lock")


def test_the_lock_holds_every_pin_with_a_hash():
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", LOCK.read_text(), re.M))
    pins = {}
    for name in ("requirements.txt", "requirements-gpu.txt"):
        pins |= dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.M))
    assert len(pins) > 20 and len(locked) > 200 and len(locked) == LOCK.read_text().count("==")
    names = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in locked.items()}
    wrong = {
        name: version for name, version in pins.items() if names.get(re.sub("[-_.]+", "-", name).lower()) != version
    }
    assert wrong == {}


def test_the_image_installs_by_hash_and_runs_as_nobody_special():
    text = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes -r requirements-image.lock" in text
    assert re.search(r"^USER (\d+)", text, re.M)[1] != "0"
    assert text.index("COPY . .") < text.index("chmod") < text.index("USER ") < text.index("CMD ")


def test_a_report_becomes_a_lock(tmp_path):
    assert written(tmp_path, [package("Beta", {"sha256": HASH}), package("alpha", {"sha256": HASH})]) == 0
    assert (tmp_path / "lock").read_text().splitlines()[1:] == [
        "alpha==1.0 \\",
        f"    --hash=sha256:{HASH}",
        "beta==1.0 \\",
        f"    --hash=sha256:{HASH}",
    ]


@pytest.mark.parametrize("packages", [[], [package("alpha", {"md5": "x"})]])
def test_a_report_without_hashes_is_refused(tmp_path, packages):
    assert written(tmp_path, packages) == 2 and not (tmp_path / "lock").exists()
