"""What every command tells about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import pytest
from edgescribe.__main__ import COMMANDS, edgescribe


def command_paths() -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        found = edgescribe.get_command(click.Context(edgescribe), name)
        paths.append((name,))
        if isinstance(found, click.Group):
            paths += [(name, inner) for inner in found.list_commands(click.Context(found))]
    return paths


@pytest.mark.parametrize("path", command_paths(), ids=lambda path: " ".join(path) or "edgescribe")
def test_help(path: tuple[str, ...], call: Callable[..., Any]) -> None:
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


def test_short_helps_agree_with_the_commands() -> None:
    for name in COMMANDS:
        found = edgescribe.get_command(click.Context(edgescribe), name)
        assert found is not None
        assert found.name == name


def test_nothing_given_shows_the_help(call: Callable[..., Any]) -> None:
    ended = call([])
    assert ended.code == 2
    assert "Commands:" in ended.err


def test_version(call: Callable[..., Any]) -> None:
    import edgescribe as package

    assert call(["--version"]).out == f"edgescribe {package.__version__}\n"
