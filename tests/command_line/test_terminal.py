"""Colours and bars: only on a terminal, and colours only without NO_COLOR."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

BRIEF = ("--samples", "4", "--seconds", "0")

Process = Callable[..., subprocess.CompletedProcess[str]]


def on_terminal(arguments: Sequence[str], **environment: str) -> str:
    """Everything that a terminal is sent."""
    import pty

    master, slave = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | environment
    started = subprocess.Popen(
        [sys.executable, "-P", "-m", "edgescribe", *arguments], stdin=slave, stdout=slave, stderr=slave, env=env
    )
    os.close(slave)
    parts = []
    try:
        while part := os.read(master, 4096):
            parts.append(part)
    except OSError:  # Linux's way to tell that the other side has gone
        pass
    finally:
        os.close(master)
        started.wait(timeout=60)
    return b"".join(parts).decode()


@pytest.mark.slow
def test_a_terminal_gets_bars_and_colours(places: dict[str, str]) -> None:
    arguments = ["check", places["bundle"], "--device", places["profile"], *BRIEF]
    sent = on_terminal(arguments)
    assert "Measuring" in sent
    assert "\x1b[32mmet" in sent
    plain = on_terminal(arguments, NO_COLOR="1")
    assert "Measuring" in plain
    assert not re.search(r"\x1b\[[0-9;]*m", plain)
    assert "error: " in on_terminal(["inspect", places["missing"]], NO_COLOR="1")
    assert "\x1b[31m" in on_terminal(["inspect", places["missing"]])


def test_a_pipe_gets_neither(places: dict[str, str], process: Process) -> None:
    done = process(["check", places["bundle"], "--device", places["profile"], *BRIEF])
    assert "\x1b" not in done.stdout + done.stderr
    assert "Measuring" not in done.stderr


def test_a_terminal_without_texts_is_asked_for_them(places: dict[str, str]) -> None:
    assert "no texts: give --text" in on_terminal(["run", places["bundle"]])


@pytest.mark.slow
def test_stages_have_bars_on_a_terminal_and_lines_elsewhere(
    workbench_places: dict[str, str], process: Process
) -> None:
    arguments = ["recover", "{student}", "--teacher", "{student}", "--task", "classify", "--train", "{train}"]
    arguments += ["--recipe", "{recipe}", "--force", "--out", "{tmp}/shown"]
    arguments = [argument.format(**workbench_places) for argument in arguments]
    sent = on_terminal(arguments, OMP_NUM_THREADS="1")
    assert re.search(r"Training on the grid  \[#+-+\] +\d+%.*loss \d", sent)
    assert "checkpoint: " in sent
    quiet = process(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert quiet.returncode == 0
    assert "\x1b" not in quiet.stderr
    stages = [line.partition(":")[0] for line in quiet.stderr.splitlines()]
    assert stages == ["reading", "cutting texts into tokens", "calibrating", "training on the grid"]
