"""The commands of the writing assistant's README, its unit, its pictures, and what it shares with others."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[3]
SAMPLE = CHECKOUT / "samples/raspberry_pi/writing_assistant"
SYSTEM_PATHS = ("/opt/writing-assistant", "/var/cache", "/etc/systemd/system")


@pytest.fixture
def port() -> int:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def shell(readme_shell: Callable[..., Any], writer_bundle: Path, port: int) -> Any:
    made = readme_shell(SAMPLE, writer_bundle, SYSTEM_PATHS, {"8080": str(port)})
    (made.root / "var/cache/writing-assistant").mkdir(parents=True)  # systemd's part: CacheDirectory
    return made


@pytest.mark.slow
def test_every_command_of_the_readme(shell: Any, port: int, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "demo", "tests", "*.egg-info", "__pycache__", "*.gz")
    shutil.copytree(CHECKOUT, checkout, ignore=ignored)
    shell.section("1.", checkout)
    copied = {path.name.partition("-")[0] for path in shell.pi.glob("[!.]*")}
    assert copied == {"edgescribe", "writer", "writing_assistant"}
    unit = shell.pi / "writing_assistant/writing-assistant.service"
    unit.write_text(unit.read_text().replace("8080", str(port)))

    shell.section("2.")
    installed = subprocess.run(
        [shell.root / "opt/writing-assistant/venv/bin/pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout
    assert "starlette" in installed
    assert "torch" not in installed

    assert "the page is there" in shell.section("3.")
    # the stand-in for systemd reads one unit and no drop-in, so that the address stays this machine's
    network = shell.section("4.")
    drop_in = (shell.root / "etc/systemd/system/writing-assistant.service.d/network.conf").read_text()
    assert "--host 0.0.0.0" in drop_in, network
    assert "the page is at" in shell.section("5.")

    new_bundle, end = shell.blocks("6.")
    shell.run(new_bundle, shell.pi)
    assert "the page is there" in shell.run(shell.blocks("3.")[0].splitlines()[-1], shell.pi)
    assert list((shell.root / "var/cache/writing-assistant").glob("*.kv"))
    shell.run(end, shell.pi)
    assert [path for folder in SYSTEM_PATHS[1:] for path in Path(f"{shell.root}{folder}").iterdir()] == []
    assert not (shell.root / "opt/writing-assistant").exists()


def test_the_readme_has_no_command_outside_its_sections(readme_blocks: Callable[..., list[str]]) -> None:
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    in_sections = sum(len(readme_blocks(SAMPLE, f"{number}.")) for number in range(1, 7))
    assert len(re.findall(r"^```sh$", text, flags=re.M)) == in_sections


def test_named_options_exist(readme_blocks: Callable[..., list[str]]) -> None:
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(--[a-z-]+)", text))
    commands = [*readme_blocks(SAMPLE, "4."), (SAMPLE / "writing-assistant.service").read_text()]
    for command in commands:
        named |= set(re.findall(r"(--[a-z-]+)", "".join(re.findall(r"^ExecStart=.*", command, flags=re.M))))
    done = subprocess.run(
        [sys.executable, SAMPLE / "writing_assistant.py", "--help"], capture_output=True, text=True, check=True
    )
    assert {"--host", "--name", "--prefix-cache"} <= named
    assert named <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_the_drop_in_serves_what_the_unit_serves(readme_blocks: Callable[..., list[str]]) -> None:
    def command(text: str) -> str:
        return re.findall(r"^ExecStart=(.+)", text, flags=re.M)[-1]

    unit = command((SAMPLE / "writing-assistant.service").read_text())
    assert unit.replace("--host 127.0.0.1", "--host 0.0.0.0") == command(readme_blocks(SAMPLE, "4.")[0])


def test_pictures_are_small() -> None:
    names = re.findall(r"docs/images/([\w-]+\.png)", (SAMPLE / "README.md").read_text(encoding="utf-8"))
    assert len(names) == 2
    assert all((CHECKOUT / "docs/images" / name).stat().st_size < 150_000 for name in names)


def test_the_tests_use_the_versions_that_the_pi_gets() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = (SAMPLE / "requirements.txt").read_text(encoding="utf-8").split("\n")
    for requirement in project["project"]["optional-dependencies"]["dev"]:
        if requirement.startswith(("starlette", "uvicorn")):
            assert requirement in pinned


def test_what_both_samples_have_is_the_same() -> None:
    # each sample's folder is copied to a Pi as it is, so it is whole in itself
    name = "service_manager.py"
    assert (SAMPLE / name).read_bytes() == (SAMPLE.parent / "topic_tagger" / name).read_bytes()


needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@needs_analyze
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = (SAMPLE / "writing-assistant.service").read_text()
    # it looks for the program and for the documentation
    text = text.replace("/opt/writing-assistant/venv/bin/python", sys.executable)
    (tmp_path / "writing-assistant.service").write_text(text.replace("/opt/writing-assistant", str(SAMPLE)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "writing-assistant.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "writing-assistant.service" not in done.stderr


@needs_analyze
def test_systemd_calls_the_unit_safe() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(SAMPLE / "writing-assistant.service")],
        capture_output=True, text=True, check=False, env=os.environ | {"SYSTEMD_PAGER": "cat"},
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a unit offline (before systemd 250)")
    assert done.returncode == 0, done.stdout
