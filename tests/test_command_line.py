"""Every command: its good path, each exit code it can end with, its help, and ``--json`` on all of them.

``CASES`` is the table, ``WORKBENCH_CASES`` that of the commands that need torch. A case runs twice in this process,
plainly and with ``--json``; add a line for a new command or a new way to fail. ``{bundle}``, ``{texts}`` and so on in
arguments are the names in ``places``.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from edgescribe.__main__ import COMMANDS, edgescribe, run
from edgescribe.sdk.console import Result, command, run_cli

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


@pytest.fixture(scope="module")
def places(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the names in braces."""
    tmp = tmp_path_factory.mktemp("places")
    rows = [("a chess puzzle", "games"), ("the network router", "net"), ("audio music", "sound")]
    (tmp / "texts.jsonl").write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    (tmp / "lines.txt").write_text("audio music\n\nchess\n")
    (tmp / "bad_rows.jsonl").write_text('{"words": 1}\n')
    (tmp / "foreign.jsonl").write_text('{"text": "a soup", "label": "cooking"}\n')
    (tmp / "binary.bin").write_bytes(b"\x80\x02\xff\xfe")
    shutil.copytree(small_bundle, tmp / "damaged")
    artifact = tmp / "damaged" / "onnxruntime" / "words.onnx"
    content = bytearray(artifact.read_bytes())
    content[100] ^= 1
    artifact.write_bytes(content)
    catalogue = Path(importlib.util.find_spec("edgescribe.device_profiles.catalogue").submodule_search_locations[0])  # type: ignore[union-attr,index]
    profile = (catalogue / "raspberry-pi-5.toml").read_text()
    (tmp / "profile.toml").write_text(profile)
    (tmp / "tight.toml").write_text(re.sub(r"(?m)^p90_ms = .*$", "p90_ms = 1e-6", profile))
    without = re.sub(r"(?ms)^\[budgets\.classify\].*?(?=^\[)", "", profile)
    (tmp / "without.toml").write_text(without)
    return {
        "bundle": str(small_bundle),
        "texts": str(tmp / "texts.jsonl"),
        "lines": str(tmp / "lines.txt"),
        "bad_rows": str(tmp / "bad_rows.jsonl"),
        "binary": str(tmp / "binary.bin"),
        "foreign_texts": str(tmp / "foreign.jsonl"),
        "missing": str(tmp / "missing"),
        "damaged": str(tmp / "damaged"),
        "profile": str(tmp / "profile.toml"),
        "tight_profile": str(tmp / "tight.toml"),
        "profile_without_budget": str(tmp / "without.toml"),
        "tmp": str(tmp),
    }


@pytest.fixture(scope="module")
def workbench_places(
    places: dict[str, str], topic_files: Any, easy_profile: Path, tight_profile: Path
) -> dict[str, str]:
    """``places``, and a student with its data."""
    from edgescribe import read_recipe, recover_checkpoint

    tmp = Path(places["tmp"])
    (tmp / "short.toml").write_text("[training]\nepochs = 1\n")
    (tmp / "bad.toml").write_text("[training]\nepoch = 1\n")
    recover_checkpoint(
        topic_files.student,
        teacher=topic_files.student,
        task="classify",
        train=topic_files.train,
        recipe=read_recipe("round"),
        out=tmp / "rounded",
    )
    return places | {
        **{name: str(path) for name, path in topic_files._asdict().items()},
        "easy_profile": str(easy_profile),
        "tight_profile": str(tight_profile),
        "recipe": str(tmp / "short.toml"),
        "bad_recipe": str(tmp / "bad.toml"),
        "recovered": str(tmp / "rounded"),
    }


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    places: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """Run the command line in this process."""

    def call(arguments: Sequence[str], stdin: str | None = None, places: dict[str, str] = places) -> Ended:
        raw = io.BytesIO((stdin or "").encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="utf-8"))
        code = run([argument.format(**places) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return call


def params(cases: list[Case]) -> list[Any]:
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(case, id=case.name, marks=marks[case.slow]) for case in cases]


@pytest.mark.parametrize("case", params(CASES))
def test_in_words(case: Case, call: Callable[..., Ended]) -> None:
    check_words(case, call(case.arguments, case.stdin))


@pytest.mark.parametrize("case", params(CASES))
def test_in_json(case: Case, call: Callable[..., Ended]) -> None:
    check_json(case, call([*case.arguments, "--json"], case.stdin))


@pytest.mark.parametrize("case", params(WORKBENCH_CASES))
def test_the_workbench_in_words(case: Case, call: Callable[..., Ended], workbench_places: dict[str, str]) -> None:
    check_words(case, call(case.arguments, places=workbench_places))


@pytest.mark.parametrize("case", params(WORKBENCH_CASES))
def test_the_workbench_in_json(case: Case, call: Callable[..., Ended], workbench_places: dict[str, str]) -> None:
    check_json(case, call([*case.arguments, "--json"], places=workbench_places))


def check_words(case: Case, ended: Ended) -> None:
    assert ended.code == case.code, ended.err
    assert "Traceback" not in ended.err
    if case.code in (0, 3):
        assert case.shows in ended.out
        assert "error:" not in ended.err
    else:
        assert case.shows in ended.err
        assert len([line for line in ended.err.splitlines() if line.startswith("error: ")]) == 1
        assert ended.out == ""


def check_json(case: Case, ended: Ended) -> None:
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


def written() -> list[str]:
    """Commands whose module is there."""
    return [name for name, entry in COMMANDS.items() if importlib.util.find_spec(entry.module, "edgescribe")]


def command_paths() -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = [()]
    for name in written():
        found = edgescribe.get_command(click.Context(edgescribe), name)
        paths.append((name,))
        if isinstance(found, click.Group):
            paths += [(name, inner) for inner in found.list_commands(click.Context(found))]
    return paths


@pytest.mark.parametrize("path", command_paths(), ids=lambda path: " ".join(path) or "edgescribe")
def test_help(path: tuple[str, ...], call: Callable[..., Ended]) -> None:
    for flag in ("--help", "-h"):
        ended = call([*path, flag])
        assert ended.code == 0
        assert ended.out.startswith(f"Usage: edgescribe {' '.join(path)}".rstrip())
        assert max(map(len, ended.out.splitlines())) <= 100


@pytest.mark.parametrize("path", command_paths(), ids=lambda path: " ".join(path) or "edgescribe")
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    found: click.Command = edgescribe
    for name in path:
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), name)
        assert inner is not None
        found = inner
    assert found.help
    for parameter in found.params:
        assert isinstance(parameter, click.Argument) or parameter.help, parameter.name  # type: ignore[attr-defined]
    if not isinstance(found, click.Group):
        assert "--json" in [option for parameter in found.params for option in parameter.opts]


@pytest.mark.parametrize("name", written())
def test_every_command_is_in_the_table(name: str) -> None:
    codes = {case.code for case in CASES + WORKBENCH_CASES if case.arguments[:1] == (name,)}
    assert {0, 2} <= codes, f"add cases for {name!r} to CASES: its good path and wrong usage at least"


def test_short_helps_agree_with_the_commands() -> None:
    for name in written():
        found = edgescribe.get_command(click.Context(edgescribe), name)
        assert found is not None
        assert found.name == name


def test_nothing_given_shows_the_help(call: Callable[..., Ended]) -> None:
    ended = call([])
    assert ended.code == 2
    assert "Commands:" in ended.err


def test_version(call: Callable[..., Ended]) -> None:
    import edgescribe as package

    assert call(["--version"]).out == f"edgescribe {package.__version__}\n"


def test_answers_of_run_in_json(call: Callable[..., Ended]) -> None:
    ended = call(["run", "{bundle}", "--input", "{texts}", "--top-k", "2", "--json"])
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [(row["line"], row["label"]) for row in rows] == [(1, "games"), (2, "net"), (3, "sound")]
    for row in rows:
        assert list(row["scores"].values()) == sorted(row["scores"].values(), reverse=True)
        assert row["scores"][row["label"]] == row["score"]
        assert len(row["scores"]) == 2


def test_an_error_after_answers_is_the_last_line(call: Callable[..., Ended], tmp_path: Path) -> None:
    half = tmp_path / "half.jsonl"
    half.write_text('{"text": "chess"}\n{"words": 1}\n')
    ended = call(["run", "{bundle}", "--input", str(half), "--json"])
    assert ended.code == 4
    first, last = map(json.loads, ended.out.splitlines())
    assert first["label"] == "games"
    assert last["error"]["type"] == "DataError"
    assert "half.jsonl:2" in last["error"]["message"]


def test_run_tells_what_was_cut(call: Callable[..., Ended]) -> None:
    ended = call(["run", "{bundle}", "--text", "chess " * 50])
    assert ended.code == 0
    assert "warning: 1 text was longer than 32 tokens" in ended.err


def test_bench_gives_figures(call: Callable[..., Ended]) -> None:
    found = json.loads(call(["bench", "{bundle}", *BRIEF, "--json"]).out)
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert found["samples"] >= 4
    assert not found["published"]
    assert found["effective"]["runtime"] == "onnxruntime"
    assert found["cold_ms"] > found["load_ms"]


def test_check_shows_each_figure(call: Callable[..., Ended]) -> None:
    found = json.loads(call(["check", "{bundle}", "--device", "{tight_profile}", *BRIEF, "--json"]).out)
    assert found["met"] is False
    verdicts = {finding["key"]: finding["verdict"] for finding in found["findings"]}
    assert verdicts == {"p90_ms": "over", "peak_rss_mib": "met", "disk_mib": "met"}


def test_measured_profile_can_be_used(call: Callable[..., Ended], tmp_path: Path) -> None:
    out = tmp_path / "here.toml"
    assert call(["devices", "measure", "--seconds", "0.2", "--out", str(out)]).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["here.toml"]
    ended = call(["check", "{bundle}", "--device", str(out), *BRIEF, "--json"])
    assert ended.code == 0
    assert {finding["how"] for finding in json.loads(ended.out)["findings"]} == {"measured"}


# The whole process


def process(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "edgescribe", *arguments], capture_output=True, text=True, timeout=120, **options
    )


@pytest.mark.parametrize("arguments", [["--version"], ["devices", "show", "rk3588"]])
def test_as_a_process(arguments: list[str]) -> None:
    done = process(arguments)
    assert done.returncode == 0
    assert done.stdout
    assert done.stderr == ""


def test_the_installed_command() -> None:
    found = shutil.which("edgescribe", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("edgescribe is not installed as a command beside this Python")
    assert subprocess.run([found, "--version"], capture_output=True, text=True).stdout.startswith("edgescribe ")


def test_an_engine_that_is_not_installed_is_named(small_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\nfrom edgescribe.__main__ import run\n"
        f"sys.exit(run(['run', {str(small_bundle)!r}, '--text', 'chess', '--json']))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["type"] == "MissingExtraError"
    assert "pip install 'edgescribe[onnxruntime]'" in done.stderr


def test_interrupted(small_bundle: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-P", "-m", "edgescribe", "run", str(small_bundle)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdin is not None
    assert started.stdout is not None
    started.stdin.write("chess\n")
    started.stdin.flush()
    assert started.stdout.readline().startswith("games")  # it works on the next line now
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(small_bundle: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.txt"
    many.write_text("chess puzzle\n" * 20_000)
    reading, writing = os.pipe()
    started = subprocess.Popen(
        [sys.executable, "-P", "-m", "edgescribe", "run", str(small_bundle), "--input", str(many)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert os.read(reading, 5) == b"games"
    os.close(reading)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 0
    assert "error" not in err.lower()
    assert "Exception" not in err


# Shell completion, as the shells ask for it


def complete(words: str, **extra: str) -> list[str]:
    count = len(words.split()) - (0 if words.endswith(" ") else 1)
    environment = os.environ | {"_EDGESCRIBE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = process([], env=environment | extra)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_completes_commands_options_and_devices() -> None:
    assert complete("edgescribe in") == ["inspect"]
    assert set(complete("edgescribe ")) == set(COMMANDS)
    assert complete("edgescribe devices ") == ["list", "measure", "show"]
    assert "--text" in complete("edgescribe run bundle --t")
    assert complete("edgescribe check bundle --device raspberry-pi-z") == ["raspberry-pi-zero-2-w"]
    assert complete("edgescribe run bundle --runtime o") == ["onnxruntime", "openvino"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_takes_the_script() -> None:
    script = process(["completion", "bash"]).stdout
    code = script + "\ncomplete -p edgescribe"
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "_edgescribe_completion" in done.stdout


@pytest.mark.parametrize("name", ["convert", "plan", "prune", "recover", "export", "evaluate"])
def test_the_workbench_explains_itself_without_torch_and_names_the_extra(name: str, places: dict[str, str]) -> None:
    without = "import sys; sys.modules['torch'] = None; from edgescribe.__main__ import main; main()"
    arguments = {
        "convert": ["a", "--task=tag", "--device=host", "--train=b", "--eval=c", "--out=d"],
        "plan": ["a", "--task=tag", "--device=host"],
        "prune": ["a", "--task=tag", "--train=b", "--layers=1", "--out=c"],
        "recover": ["a", "--teacher=t", "--task=tag", "--train=b", "--out=c"],
        "export": ["a", "--texts=b", "--out=c"],
        "evaluate": ["a", "--eval=b"],
    }

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-c", without, name, *arguments], capture_output=True, text=True, timeout=120
        )

    assert call("--help").returncode == 0
    done = call(*arguments[name], "--json")
    assert done.returncode == 5, done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "MissingExtraError"
    assert "pip install 'edgescribe[convert]'" in done.stderr


def test_a_function_of_the_workbench_names_the_extra_too() -> None:
    code = "import sys; sys.modules['torch'] = None; import edgescribe\ntry: edgescribe.convert\n"
    code += "except edgescribe.MissingExtraError as error: print(error.package, error.extra)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "torch convert\n"


# What the frame does with faults, by a command that has them


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


# Colours and bars: only on a terminal, and colours only without NO_COLOR


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


def test_a_pipe_gets_neither(places: dict[str, str]) -> None:
    done = process(["check", places["bundle"], "--device", places["profile"], *BRIEF])
    assert "\x1b" not in done.stdout + done.stderr
    assert "Measuring" not in done.stderr


def test_a_terminal_without_texts_is_asked_for_them(places: dict[str, str]) -> None:
    assert "no texts: give --text" in on_terminal(["run", places["bundle"]])


@pytest.mark.slow
def test_stages_have_bars_on_a_terminal_and_lines_elsewhere(workbench_places: dict[str, str]) -> None:
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
