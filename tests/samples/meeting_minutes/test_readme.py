"""The commands of the meeting minutes' README, its unit, and what it shares with others."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[3]
SAMPLE = CHECKOUT / "samples/raspberry_pi/meeting_minutes"
SYSTEM_PATHS = ("/opt/meeting-minutes", "/srv/meeting-minutes", "/etc/systemd/system")


@pytest.fixture
def port() -> int:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def shell(readme_shell: Callable[..., Any], tiny_bundle: Path, port: int) -> Any:
    return readme_shell(SAMPLE, tiny_bundle, SYSTEM_PATHS, {"8080": str(port)})


@pytest.mark.slow
def test_every_command_of_the_readme(shell: Any, port: int, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "demo", "tests", "*.egg-info", "__pycache__", "*.gz")
    shutil.copytree(CHECKOUT, checkout, ignore=ignored)
    shell.section("1.", checkout)
    copied = {path.name.partition("-")[0] for path in shell.pi.glob("[!.]*")}
    assert copied == {"edgescribe", "minutes", "meeting_minutes"}
    unit = shell.pi / "meeting_minutes/meeting-minutes.service"
    unit.write_text(unit.read_text().replace("8080", str(port)))

    shell.section("2.")
    installed = subprocess.run(
        [shell.root / "opt/meeting-minutes/venv/bin/pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout
    assert "starlette" in installed
    assert "torch" not in installed

    by_hand = shell.section("3.")
    assert "- [ ] **Ravi**: sign the contract (by Friday)" in by_hand

    journal = shell.section("4.")
    assert "the page is there" in journal
    assert "- [ ] **Ravi**: sign the contract (by Friday)" in journal
    assert "wrote 'fair.md'" in journal
    # the stand-in for systemd reads one unit and no drop-in, so that the address stays this machine's
    network = shell.section("5.")
    drop_in = (shell.root / "etc/systemd/system/meeting-minutes.service.d/network.conf").read_text()
    assert "--host 0.0.0.0" in drop_in, network

    new_bundle, end = shell.blocks("6.")
    shell.run(new_bundle, shell.pi)
    assert "the page is there" in shell.run(shell.blocks("4.")[0].splitlines()[-1], shell.pi)
    shell.run(end, shell.pi)
    left = {path.name for folder in ("opt", "srv", "etc/systemd/system") for path in (shell.root / folder).iterdir()}
    assert left <= {"systemd"}


def test_the_readme_has_no_command_outside_its_sections(readme_blocks: Callable[..., list[str]]) -> None:
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    in_sections = sum(len(readme_blocks(SAMPLE, f"{number}.")) for number in range(1, 7))
    assert len(re.findall(r"^```sh$", text, flags=re.M)) == in_sections


def test_named_options_exist(readme_blocks: Callable[..., list[str]]) -> None:
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(--[a-z-]+)", text)) - {"--recipe"}  # that one is edgescribe's
    commands = [*readme_blocks(SAMPLE, "5."), (SAMPLE / "meeting-minutes.service").read_text()]
    for command in commands:
        named |= set(re.findall(r"(--[a-z-]+)", "".join(re.findall(r"^ExecStart=.*", command, flags=re.M))))
    done = subprocess.run(
        [sys.executable, SAMPLE / "meeting_minutes.py", "--help"], capture_output=True, text=True, check=True
    )
    assert {"--host", "--name", "--inbox", "--settle"} <= named
    assert named <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_the_conversion_has_options_and_a_recipe_that_exist(readme_blocks: Callable[..., list[str]]) -> None:
    from edgescribe.converters.commands.convert import convert
    from edgescribe.converters.recipe import NAMED

    command = readme_blocks(SAMPLE, "1.")[0].partition("edgescribe convert")[2]
    known = {name for parameter in convert.params for name in parameter.opts}
    assert set(re.findall(r"(--[a-z-]+)", command)) <= known
    (recipe,) = re.findall(r"--recipe (\S+)", command)
    assert recipe in NAMED
    for path in re.findall(r"samples/\S+", command):
        assert (CHECKOUT / path).is_file()


def test_phrases_that_the_readme_names_are_found() -> None:
    from cues import find_task, is_decision

    text = " ".join((SAMPLE / "README.md").read_text(encoding="utf-8").split())
    for phrase, sentence in (("we agreed to", "So we agreed to go."), ("let's go with", "Let's go with hall 3.")):
        assert f'"{phrase}"' in text
        assert is_decision(sentence)
    for phrase, sentence in (
        ("I'll …", "I'll sign it."), ("Ravi, can you …?", "Ravi, can you sign it?"), ("Action: …", "Action: sign it."),
    ):  # fmt: skip
        assert f'"{phrase}"' in text
        assert find_task(sentence, "Anna") is not None


def test_the_drop_in_serves_what_the_unit_serves(readme_blocks: Callable[..., list[str]]) -> None:
    def command(text: str) -> str:
        return re.findall(r"^ExecStart=(.+)", text, flags=re.M)[-1]

    unit = command((SAMPLE / "meeting-minutes.service").read_text())
    assert unit.replace("--host 127.0.0.1", "--host 0.0.0.0") == command(readme_blocks(SAMPLE, "5.")[0])


def test_what_samples_have_in_common_is_the_same() -> None:
    # each sample's folder is copied to a Pi as it is, so it is whole in itself
    for name in ("service_manager.py", "inbox.py", "filing.py"):
        assert (SAMPLE / name).read_bytes() == (SAMPLE.parent / "topic_tagger" / name).read_bytes()
    pinned = (SAMPLE / "requirements.txt").read_text(encoding="utf-8").splitlines()[1:]
    other = (SAMPLE.parent / "writing_assistant/requirements.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert pinned == other


needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@needs_analyze
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = (SAMPLE / "meeting-minutes.service").read_text()
    # it looks for the program and for the documentation
    text = text.replace("/opt/meeting-minutes/venv/bin/python", sys.executable)
    (tmp_path / "meeting-minutes.service").write_text(text.replace("/opt/meeting-minutes", str(SAMPLE)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "meeting-minutes.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "meeting-minutes.service" not in done.stderr


@needs_analyze
def test_systemd_calls_the_unit_safe() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(SAMPLE / "meeting-minutes.service")],
        capture_output=True, text=True, check=False, env=os.environ | {"SYSTEMD_PAGER": "cat"},
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a unit offline (before systemd 250)")
    assert done.returncode == 0, done.stdout
