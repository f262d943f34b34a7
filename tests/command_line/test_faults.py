"""What the frame of all commands does with faults, by a command that has them."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from edgescribe.sdk.console import Result, command, run_cli

KINDS = ["fault", "interrupt", "interrupt-in-words", "torch", "unknown-package", "numpy"]

@command()
@click.option("--kind", type=click.Choice(KINDS), required=True)
def break_down(kind: str) -> Result:
    """Go wrong."""
    if kind == "interrupt-in-words":
        raise KeyboardInterrupt("interrupted; --resume goes on")
    if kind == "fault":
        raise RuntimeError("the sky fell")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "torch":
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    if kind == "unknown-package":
        raise ModuleNotFoundError("No module named 'abacus'", name="abacus")
    import numpy as np

    data = {"array": np.arange(3, dtype=np.float32), "scalar": np.int64(2), "path": Path("a"), "nan": np.nan}
    return Result(data, "x")


@pytest.mark.parametrize(
    ("kind", "code", "name", "shows"),
    [
        ("fault", 1, "RuntimeError", "the sky fell"),
        ("torch", 5, "MissingExtraError", "pip install 'edgescribe[convert]'"),
        ("unknown-package", 1, "ModuleNotFoundError", "abacus"),
        ("interrupt", 130, "Interrupted", "interrupted"),
        ("interrupt-in-words", 130, "Interrupted", "--resume goes on"),
    ],
)
def test_faults(kind: str, code: int, name: str, shows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(break_down, ["--kind", kind, "--json"], "edgescribe") == code
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["type"], error["exit_code"]) == (name, code)
    assert shows.lower() in error["message"].lower()
    assert shows.lower() in err.lower()
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cli(break_down, ["--kind", "fault", "--debug"], "edgescribe") == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("EDGESCRIBE_DEBUG", "1")
    assert run_cli(break_down, ["--kind", "fault"], "edgescribe") == 1
    assert 'raise RuntimeError("the sky fell")' in capsys.readouterr().err


def test_numpy_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(break_down, ["--kind", "numpy", "--json"], "edgescribe") == 0
    assert json.loads(capsys.readouterr().out) == {"array": [0, 1, 2], "scalar": 2, "path": "a", "nan": None}
