"""Every command by a table: its good path, each exit code it can end with, and ``--json`` on all of them.

``CASES`` is the table, ``WORKBENCH_CASES`` that of the commands that need torch. A case runs twice in this process,
plainly and with ``--json``; add a line for a new command or a new way to fail. ``{bundle}``, ``{texts}`` and so on in
arguments are the names in ``places`` (conftest.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from edgescribe.__main__ import COMMANDS

BRIEF = ("--samples", "4", "--seconds", "0")
TOPICS = ("{student}", "--task", "classify", "--train", "{train}")
CONVERT = ("convert", *TOPICS, "--eval", "{evaluation}")
RECOVER = ("recover", *TOPICS, "--teacher", "{student}", "--recipe", "{recipe}")
EASY = ("--device", "{easy_profile}", *BRIEF, "--out", "{tmp}/converted", "--force")

class Case(NamedTuple):
    """Arguments and the exit code they end with; ``shows`` is found in stdout, or in the error message."""

    arguments: tuple[str, ...]
    code: int = 0
    shows: str = ""
    stdin: str | None = None
    slow: bool = False

    @property
    def name(self) -> str:
        """How pytest calls it."""
        return f"{self.code}: {' '.join(self.arguments) or 'nothing'}"


CASES = [
    # nothing, or nothing known
    Case(("dance",), 2, "No such command 'dance'"),
    Case(("devise",), 2, "Did you mean devices"),
    # run
    Case(("run", "{bundle}", "--text", "a network router", "--text", "chess"), 0, "net"),
    Case(("run", "{bundle}", "--input", "{texts}", "--top-k", "3", "--batch-size", "3"), 0, "games"),
    Case(("run", "{bundle}", "--input", "{lines}", "--threads", "1"), 0, "sound"),
    Case(("run", "{bundle}"), 0, "sound", stdin="audio\n\nchess\n"),
    Case(("run", "{bundle}", "--input", "-", "--runtime", "onnxruntime"), 0, "net", stdin="router"),
    Case(("run", "{bundle}", "--text", "router", "--precision", "fp32"), 0, "net"),
    Case(("run", "{bundle}", "--text", "music", "--device", "{profile}"), 0, "sound"),
    Case(("run",), 2, "Missing argument 'BUNDLE'"),
    Case(("run", "{bundle}", "--text", "a", "--input", "{texts}"), 2, "exclude each other"),
    Case(("run", "{bundle}", "--text", "a", "--top-k", "0"), 2, "--top-k"),
    Case(("run", "{bundle}", "--text", "a", "--runtime", "abacus"), 2, "abacus"),
    Case(("run", "{bundle}", "--colour", "red"), 2, "No such option"),
    Case(("run", "{missing}", "--text", "a"), 4, "no such folder"),
    Case(("run", "{damaged}", "--text", "a"), 4, "words.onnx"),
    Case(("run", "{bundle}", "--text", "a", "--runtime", "litert"), 4, "no artifact for litert"),
    Case(("run", "{bundle}", "--text", "a", "--device", "raspberry-pie-5"), 4, "raspberry-pi-5"),
    Case(("run", "{bundle}", "--input", "{missing}"), 4, "cannot be read"),
    Case(("run", "{bundle}", "--input", "{bad_rows}"), 4, "bad_rows.jsonl"),
    Case(("run", "{bundle}", "--input", "{binary}"), 4, "not UTF-8"),
    Case(("run", "{bundle}", "--text", "a", "--device", "npu"), 5, "npu"),
    # bench
    Case(("bench", "{bundle}", *BRIEF), 0, "p90"),
    Case(("bench", "{bundle}", *BRIEF, "--input", "{texts}", "--tokens", "9"), 0, "9 tokens"),
    Case(("bench", "{bundle}", *BRIEF, "--against", "{bundle}", "--rounds", "2"), 0, "times as long"),
    Case(("bench", "{bundle}", "--published", "--samples", "3"), 2, "--published"),
    Case(("bench", "{bundle}", *BRIEF, "--tokens", "33"), 2, "33 tokens are more than the 32"),
    Case(("bench", "{missing}"), 4, "no such folder"),
    Case(("bench", "{bundle}", *BRIEF, "--precision", "w8a8-static"), 4, "no artifact for w8a8-static"),
    Case(("bench", "{bundle}", *BRIEF, "--device", "npu"), 5, "npu"),
    # check
    Case(("check", "{bundle}", "--device", "{profile}", *BRIEF), 0, "met"),
    Case(("check", "{bundle}", "--device", "{tight_profile}", *BRIEF), 3, "over"),
    Case(("check", "{bundle}", "--device", "{profile}", "--samples", "none"), 2, "none"),
    Case(("check", "{damaged}", "--device", "{profile}"), 4, "words.onnx"),
    Case(("check", "{bundle}", "--device", "nowhere"), 4, "no device profile is called 'nowhere'"),
    Case(("check", "{bundle}", "--device", "{profile_without_budget}"), 4, "no budget for 'classify'"),
    Case(("check", "{bundle}", "--device", "{profile}", "--runtime", "openvino"), 4, "no artifact for openvino"),
    Case(("check", "{bundle}", "--device", "ethos-u"), 5, "nothing fits"),
    # inspect
    Case(("inspect", "{bundle}"), 0, "games, net, sound"),
    Case(("inspect",), 2, "BUNDLE"),
    Case(("inspect", "{damaged}"), 4, "words.onnx"),
    Case(("inspect", "{texts}"), 4, "give the folder"),
    # devices
    Case(("devices", "list"), 0, "raspberry-pi-5"),
    Case(("devices", "show", "raspberry-pi-5"), 0, "Cortex-A76"),
    Case(("devices", "show", "{profile}", "--no-sources"), 0, "Raspberry"),
    Case(("devices", "measure", "--seconds", "0.2", "--out", "{tmp}/here.toml", "--force"), 0, "here.toml"),
    Case(("devices", "measure", "--seconds", "0.2"), 0, "int8_gmac_s"),
    Case(("devices", "sell"), 2, "No such command 'sell'"),
    Case(("devices", "measure", "--out", "{tmp}/here.txt"), 2, ".toml"),
    Case(("devices", "show", "abacus"), 4, "abacus"),
    Case(("devices", "show", "{texts}"), 4, "not TOML"),
    Case(("devices", "measure", "--seconds", "0.2", "--out", "{profile}"), 4, "exists already"),
    Case(("devices", "measure", "--seconds", "0.2", "--out", "{missing}/x.toml"), 4, "cannot be written"),
    # doctor and completion
    Case(("doctor",), 0, "Python"),
    Case(("doctor", "now"), 2, "unexpected extra argument"),
    Case(("completion", "bash"), 0, "_EDGESCRIBE_COMPLETE"),
    Case(("completion", "zsh"), 0, "#compdef edgescribe"),
    Case(("completion", "fish"), 0, "edgescribe"),
    Case(("completion", "tcsh"), 2, "tcsh"),
]

WORKBENCH_CASES = [
    # convert
    Case((*CONVERT, *EASY, "--recipe", "{recipe}"), 0, "report.html", slow=True),
    Case((*CONVERT, *EASY, "--dry-run"), 0, "Nothing was written"),
    Case((*CONVERT, *EASY, "--dry-run", "--recipe", "strong", "--runtime", "litert"), 0, "strong"),
    Case(
        (*CONVERT, *EASY, "--device", "{tight_profile}", "--runtime", "litert", "--recipe", "round"),
        3,
        "over budget: tight: p90 latency",
        slow=True,
    ),
    Case(("convert", "{student}"), 2, "--task"),
    Case((*CONVERT, *EASY, "--task", "sing"), 2, "sing"),
    Case((*CONVERT, *EASY, "--runtime", "abacus"), 2, "abacus"),
    Case((*CONVERT, *EASY, "--dry-run", "--resume"), 2, "exclude each other"),
    Case((*CONVERT, *EASY, "--samples", "0"), 2, "--samples"),
    Case((*CONVERT, *EASY, "--recipe", "hars"), 4, "did you mean harsh"),
    Case((*CONVERT, *EASY, "--recipe", "{bad_recipe}"), 4, "'training.epoch'"),
    Case((*CONVERT, *EASY, "--device", "abacus"), 4, "abacus"),
    Case((*CONVERT, *EASY, "--eval", "{foreign_texts}"), 4, "cooking"),
    Case((*CONVERT, *EASY, "--train", "{bad_rows}"), 4, "bad_rows.jsonl"),
    Case((*CONVERT, *EASY, "--resume"), 4, "nothing to resume"),
    Case((*CONVERT, *EASY, "--out", "{student}"), 4, "is not a bundle"),
    Case((*CONVERT, *EASY, "--teacher", "{missing}"), 4, "no folder"),
    # plan
    Case(("plan", "{student}", "--task", "classify", "--device", "raspberry-pi-5"), 0, "gentle"),
    Case(("plan", *TOPICS, "--device", "{easy_profile}", "--runtime", "litert"), 0, "litert"),
    Case(("plan", "{student}", "--task", "classify", "--device", "{tight_profile}"), 3, "harsh"),
    Case(("plan", "{student}", "--task", "classify"), 2, "--device"),
    Case(("plan", "{missing}", "--task", "classify", "--device", "rk3588"), 4, "no folder"),
    Case(("plan", "{texts}", "--task", "classify", "--device", "rk3588"), 4, "is a file"),
    Case(("plan", "{student}", "--task", "classify", "--device", "{profile_without_budget}"), 4, "no budget"),
    # prune
    Case(("prune", *TOPICS, "--layers", "1", "--vocabulary", "0", "--out", "{tmp}/pruned", "--force"), 0, "weights"),
    Case(("prune", *TOPICS, "--recipe", "harsh", "--out", "{tmp}/pruned", "--force"), 0, "pruned"),
    Case(("prune", *TOPICS, "--out", "{tmp}/pruned"), 2, "say what to prune"),
    Case(("prune", *TOPICS, "--recipe", "light", "--layers", "1", "--out", "{tmp}/p"), 2, "exclude each other"),
    Case(("prune", *TOPICS, "--layers", "0", "--out", "{tmp}/p"), 2, "--layers"),
    Case(("prune", *TOPICS, "--layers", "9", "--out", "{tmp}/p"), 4, "9 layers; this student has 2"),
    Case(("prune", *TOPICS, "--layers", "1", "--out", "{student}"), 4, "exists already"),
    Case(("prune", *TOPICS, "--layers", "1", "--out", "{tmp}", "--force"), 4, "not a checkpoint"),
    # recover
    Case((*RECOVER, "--validation", "{validation}", "--out", "{tmp}/recovered", "--force"), 0, "w8a8-static"),
    Case(("recover", *TOPICS, "--out", "{tmp}/r"), 2, "--teacher"),
    Case(("recover", *TOPICS, "--teacher", "{missing}", "--out", "{tmp}/r"), 4, "no folder"),
    Case(("recover", *TOPICS, "--teacher", "{student}", "--out", "{tmp}/r", "--resume"), 4, "nothing to resume"),
    # export
    Case(("export", "{recovered}", "--texts", "{evaluation}", "--out", "{tmp}/exported", "--force"), 0, "litert"),
    Case(
        ("export", "{student}", "--texts", "{train}", "--runtime", "litert", "--out", "{tmp}/plain", "--force"),
        0,
        "fp32",
    ),
    Case(("export", "{student}", "--out", "{tmp}/e"), 2, "--texts"),
    Case(("export", "{student}", "--texts", "{train}", "--max-tokens", "4000", "--out", "{tmp}/e"), 2, "2 to 48"),
    Case(("export", "{missing}", "--texts", "{train}", "--out", "{tmp}/e"), 4, "missing"),
    Case(("export", "{student}", "--texts", "{missing}", "--out", "{tmp}/e"), 4, "missing"),
    Case(("export", "{student}", "--texts", "{train}", "--out", "{bundle}"), 4, "exists already"),
    # evaluate
    Case(("evaluate", "{student}", "--eval", "{evaluation}"), 0, "torch/fp32"),
    Case(("evaluate", "{recovered}", "--eval", "{evaluation}"), 0, "torch/w8a8-static"),
    Case(("evaluate", "{bundle}", "--eval", "{texts}", *BRIEF), 0, "onnxruntime/fp32"),
    Case(("evaluate", "{student}"), 2, "--eval"),
    Case(("evaluate", "{student}", "--eval", "{train}", "--task", "embed"), 2, "--reference"),
    Case(("evaluate", "{bundle}", "--eval", "{texts}", "--task", "tag"), 2, "is a bundle for classify"),
    Case(("evaluate", "{missing}", "--eval", "{train}"), 2, "--task"),
    Case(("evaluate", "{student}", "--eval", "{texts}", "--task", "tag"), 4, "tags"),
    Case(("evaluate", "{bundle}", "--eval", "{texts}", "--runtime", "litert"), 4, "no artifact for litert"),
    Case(("evaluate", "{bundle}", "--eval", "{foreign_texts}"), 4, "cooking"),
    Case(("evaluate", "{damaged}", "--eval", "{texts}"), 4, "words.onnx"),
]


def params(cases: list[Case]) -> list[Any]:
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(case, id=case.name, marks=marks[case.slow]) for case in cases]


@pytest.mark.parametrize("case", params(CASES))
def test_in_words(case: Case, call: Callable[..., Any]) -> None:
    check_words(case, call(case.arguments, case.stdin))


@pytest.mark.parametrize("case", params(CASES))
def test_in_json(case: Case, call: Callable[..., Any]) -> None:
    check_json(case, call([*case.arguments, "--json"], case.stdin))


@pytest.mark.parametrize("case", params(WORKBENCH_CASES))
def test_the_workbench_in_words(case: Case, call: Callable[..., Any], workbench_places: dict[str, str]) -> None:
    check_words(case, call(case.arguments, places=workbench_places))


@pytest.mark.parametrize("case", params(WORKBENCH_CASES))
def test_the_workbench_in_json(case: Case, call: Callable[..., Any], workbench_places: dict[str, str]) -> None:
    check_json(case, call([*case.arguments, "--json"], places=workbench_places))


def check_words(case: Case, ended: Any) -> None:
    assert ended.code == case.code, ended.err
    assert "Traceback" not in ended.err
    if case.code in (0, 3):
        assert case.shows in ended.out
        assert "error:" not in ended.err
    else:
        assert case.shows in ended.err
        assert len([line for line in ended.err.splitlines() if line.startswith("error: ")]) == 1
        assert ended.out == ""


def check_json(case: Case, ended: Any) -> None:
    assert ended.code == case.code, ended.err
    parsed = json_of(ended.out)
    if case.code in (0, 3):
        assert parsed not in ([], None)
        assert "error" not in parsed
    else:
        assert set(parsed) == {"error"}
        assert set(parsed["error"]) == {"type", "message", "exit_code"}
        assert parsed["error"]["exit_code"] == case.code
        assert case.shows in parsed["error"]["message"]
        assert parsed["error"]["message"] in ended.err


def json_of(out: str) -> Any:
    """One document, or JSON Lines as a list."""
    try:
        return json.loads(out)
    except json.JSONDecodeError:
        return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_table(name: str) -> None:
    codes = {case.code for case in CASES + WORKBENCH_CASES if case.arguments[:1] == (name,)}
    assert {0, 2} <= codes, f"add cases for {name!r} to CASES: its good path and wrong usage at least"
