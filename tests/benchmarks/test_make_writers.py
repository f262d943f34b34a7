"""How the benchmark's trained writers are made: recipes that exist, texts that are apart, commands that are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import make_writers
import pytest
from edgescribe.__main__ import edgescribe as program
from edgescribe.converters.recipe import read_recipe


def test_recipes_are_for_what_they_are_named_for() -> None:
    recipes = {name: read_recipe(make_writers.recipe(name)) for name in ("domain", "int4", "pruned")}
    assert {name: each.precision for name, each in recipes.items()} == {
        "domain": "fp32", "int4": "w4a8-dynamic", "pruned": "w4a8-dynamic",
    }  # fmt: skip
    assert recipes["domain"].training.losses.soft == 0
    assert [each.prune is None and not each.keep.vocabulary for each in recipes.values()] == [True, True, False]


def test_students_are_not_taught_with_the_texts_of_their_teacher(tmp_path: Path) -> None:
    rows = {}
    for name in ("DOMAIN", "INT4", "PRUNED"):
        path = make_writers.texts(name, getattr(make_writers, name), tmp_path)
        rows[name] = {json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()}
        assert len(rows[name]) > 1000
    assert not rows["DOMAIN"] & (rows["INT4"] | rows["PRUNED"])


def test_commands_have_the_options_that_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def called(words: list[str], check: bool) -> None:
        calls.append(words)
        Path(words[words.index("--out") + 1]).mkdir(parents=True)

    monkeypatch.setattr(subprocess, "run", called)
    monkeypatch.setattr(make_writers, "released_student", lambda folder: tmp_path / "released")
    monkeypatch.setattr(sys, "argv", ["make_writers.py", "--out", str(tmp_path)])
    assert make_writers.main() == 0
    assert [words[3] for words in calls] == ["recover", "recover", "export", "prune", "recover", "export"]
    for words in calls:
        command = program.get_command(click.Context(program), words[3])
        assert command is not None
        known = {option for each in command.params for option in each.opts}
        assert {word for word in words[4:] if word.startswith("--")} <= known
    assert make_writers.main() == 0
    assert len(calls) == 6
