"""Folders that are costly to make, made once in a run of pytest, however many workers it has."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``made_once(name, make)``: the folder ``name`` that ``make`` filled, here or in another worker before.

    Whoever comes while it is being made waits. Nothing in it may be changed.
    """

    def find(name: str, make: Callable[[Path], None]) -> Path:
        of_the_run = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            of_the_run = of_the_run.parent  # every worker has a folder of its own below the run's
        folder = of_the_run / "made-once" / name
        folder.parent.mkdir(exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                begun = tmp_path_factory.mktemp(name)
                make(begun)
                begun.rename(folder)
        return folder

    return find
