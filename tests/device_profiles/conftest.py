"""Machines as file trees: ``machines/*.txt`` holds the files of /proc, /sys, /dev and /etc that a machine has."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

MACHINES = Path(__file__).parent / "machines"


@pytest.fixture
def machine_root(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a machine's tree into a temporary folder. ``{0-3}`` in a path stands for each number, ``{}`` for it."""

    def write(name: str) -> Path:
        root = tmp_path / name
        sections = re.split(r"^== (.*)\n", (MACHINES / f"{name}.txt").read_text(), flags=re.MULTILINE)[1:]
        for path, content in zip(sections[::2], sections[1::2], strict=True):
            span = re.search(r"\{(\d+)-(\d+)\}", path)
            for number in range(int(span[1]), int(span[2]) + 1) if span else [0]:
                file = root / (path.replace(span[0], str(number)) if span else path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content.replace("{}", str(number)))
        return root

    return write
