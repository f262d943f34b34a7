"""What README.md, CONTRIBUTING.md and docs/ promise is what the program has, and their commands are commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from edgescribe import errors
from edgescribe.__main__ import COMMANDS, edgescribe
from edgescribe.converters.anatomy import FAMILIES
from edgescribe.converters.recipe import NAMED
from edgescribe.device_profiles.profiles import list_profiles

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("samples/**/*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"README has no section {title!r}"
    return found[1]


def test_the_command_table_is_the_programs() -> None:
    assert re.findall(r"^\| `edgescribe ([a-z]+)` \|", section("Commands"), re.MULTILINE) == list(COMMANDS)


def test_the_exit_codes_are_the_programs() -> None:
    classes = [found for found in vars(errors).values() if isinstance(found, type)]
    codes = {found.exit_code for found in classes if issubclass(found, errors.EdgescribeError)}
    shown = re.findall(r"^\| (\d+) \|", section("Commands"), re.MULTILINE)
    assert [int(code) for code in shown] == sorted(codes | {0, 130})


def test_the_lines_of_python_run(small_bundle: Path, tmp_path: Path) -> None:
    (code,) = blocks(README, "python")
    assert len(code.splitlines()) == 3
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/topics").symlink_to(small_bundle)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("games", "net", "sound")


def test_families_and_profiles_are_all_named() -> None:
    told = section("What works on what")
    assert [name for name in FAMILIES if not re.search(rf"\b{name}\b", told)] == []
    assert [name for name in list_profiles() if f"`{name}`" not in told] == []


def test_recipes_are_all_in_the_guide() -> None:
    guide = (ROOT / "docs/guides/convert-your-own-student.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z0-9-]+)` \|(?=.*\|.*\|.*\|)", guide, re.MULTILINE) == list(NAMED)


def test_extras_and_the_pinned_torch_are_those_of_the_project() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    named = {name for found in re.findall(r"\.\[([a-z,]+)\]", README) for name in found.split(",")}
    assert named == set(extras)
    (torch,) = [requirement for requirement in extras["convert"] if requirement.startswith("torch")]
    assert set(re.findall(r"torch==[\d.]+", README + MAKEFILE)) == {torch}


def test_python_versions_are_those_of_the_project() -> None:
    classified = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d", line)]
    (told,) = re.findall(r"The device side runs on Python (.*?),? on Linux", README)
    assert re.findall(r"3\.\d+", told) == classified
    assert PROJECT["project"]["requires-python"] == f">={classified[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))
    code = "\n".join(re.findall(r"`(make [^`]*)`", page.read_text(encoding="utf-8")))
    code += "\n" + "\n".join(blocks(page.read_text(encoding="utf-8"), "sh"))
    for line in re.findall(r"^make (.*)$", code, re.MULTILINE):
        words = [word for word in shlex.split(line, comments=True) if "=" not in word]
        assert set(words) <= targets, f"{page.name} has 'make {line}'"


def calls(page: Path) -> Iterator[list[str]]:
    """The words of every call of edgescribe in a page's shell blocks."""
    for block in blocks(page.read_text(encoding="utf-8"), "sh"):
        without_documents = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block, flags=re.DOTALL | re.MULTILINE)
        for line in without_documents.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                if word == "edgescribe" or word.endswith("/bin/edgescribe"):
                    yield words[place + 1 :]
                    break


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_options_exist(page: Path) -> None:
    for words in calls(page):
        command: click.Command = edgescribe
        rest = list(words)
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), rest[0])
            assert found is not None, f"{page.name}: edgescribe {' '.join(words)}"
            command = found
            rest = rest[1:]
        known = {"--help"} | {option for parameter in command.params for option in parameter.opts}
        named = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert named <= known, f"{page.name}: edgescribe {' '.join(words)}: {sorted(named - known)}"
