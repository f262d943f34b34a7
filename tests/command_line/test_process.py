"""The command as a process: signals, pipes, shell completion, and engines and extras that are not installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from edgescribe.__main__ import COMMANDS

Process = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("arguments", [["--version"], ["devices", "show", "rk3588"]])
def test_as_a_process(arguments: list[str], process: Process) -> None:
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


@pytest.fixture
def complete(process: Process) -> Callable[[str], list[str]]:
    """What a shell offers for the last of ``words``."""

    def complete(words: str) -> list[str]:
        count = len(words.split()) - (0 if words.endswith(" ") else 1)
        asked = {"_EDGESCRIBE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        return [line.partition(",")[2] for line in process([], env=os.environ | asked).stdout.splitlines()]

    return complete


def test_completes_commands_options_and_devices(complete: Callable[[str], list[str]]) -> None:
    assert complete("edgescribe in") == ["inspect"]
    assert set(complete("edgescribe ")) == set(COMMANDS)
    assert complete("edgescribe devices ") == ["list", "measure", "show"]
    assert "--text" in complete("edgescribe run bundle --t")
    assert complete("edgescribe check bundle --device raspberry-pi-z") == ["raspberry-pi-zero-2-w"]
    assert complete("edgescribe run bundle --runtime o") == ["onnxruntime", "openvino"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_takes_the_script(process: Process) -> None:
    script = process(["completion", "bash"]).stdout
    code = script + "\ncomplete -p edgescribe"
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "_edgescribe_completion" in done.stdout


WORKBENCH = {
    "convert": ["a", "--task=tag", "--device=host", "--train=b", "--eval=c", "--out=d"],
    "plan": ["a", "--task=tag", "--device=host"],
    "prune": ["a", "--task=tag", "--train=b", "--layers=1", "--out=c"],
    "recover": ["a", "--teacher=t", "--task=tag", "--train=b", "--out=c"],
    "export": ["a", "--texts=b", "--out=c"],
    "evaluate": ["a", "--eval=b"],
}

WITHOUT_TORCH = """
import contextlib, io, json, sys
sys.modules["torch"] = None
from edgescribe.__main__ import run
told = {}
for name, arguments in json.loads(sys.argv[1]).items():
    helped = run([name, "--help"])
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run([name, *arguments, "--json"])
    told[name] = helped, code, out.getvalue(), err.getvalue()
print(json.dumps(told), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def without_torch() -> dict[str, tuple[int, int, str, str]]:
    """Of each command of the workbench: exit codes of its help and of a call, what the call wrote to stdout and stderr.

    One process calls them one after the other.
    """
    command = [sys.executable, "-P", "-c", WITHOUT_TORCH, json.dumps(WORKBENCH)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stderr)


@pytest.mark.parametrize("name", WORKBENCH)
def test_the_workbench_explains_itself_without_torch_and_names_the_extra(
    name: str, without_torch: dict[str, tuple[int, int, str, str]]
) -> None:
    helped, code, out, err = without_torch[name]
    assert helped == 0
    assert code == 5, err
    assert json.loads(out)["error"]["type"] == "MissingExtraError"
    assert "pip install 'edgescribe[convert]'" in err


def test_a_function_of_the_workbench_names_the_extra_too() -> None:
    code = "import sys; sys.modules['torch'] = None; import edgescribe\ntry: edgescribe.convert\n"
    code += "except edgescribe.MissingExtraError as error: print(error.package, error.extra)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "torch convert\n"
