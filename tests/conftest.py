"""The tests' plugins, what holds for all of them, and how they are dealt out to several workers.

Fixtures that many folders use are in ``tests/plugins``, one subject in each file.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Models this small only wait for one another on several threads, more so beside another worker. Before torch is there.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ONE_WORKER = ("tests/userlands/",)
"""Folders whose tests prepare the same files of the checkout."""

pytest_plugins = ("made_once", "words_bundle", "topic_student", "fact_summarizer", "device_budgets")


class RootIsAFolder:
    """Keeps pytest from importing the checkout's root, which is the package edgescribe, by the folder's name.

    A checkout may have any name, one with a dash too, and such a package cannot be imported.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parents[1] else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsAFolder())
    # Tests interrupt themselves and what they start, also where pytest was started to go on after Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # What a busy machine takes for an example says nothing of the program.
    settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("unhurried")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with the files that have most to do, so that none is alone with a long one in the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        work: Counter[Path] = Counter()
        for item in items:
            work[item.path] += 20 if item.get_closest_marker("slow") else 1
        items.sort(key=lambda item: -work[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file goes to one worker, since its tests share what was made for them; so do folders of ONE_WORKER."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class InGroups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((folder for folder in ONE_WORKER if nodeid.startswith(folder)), super()._split_scope(nodeid))

    config.option.loadscopereorder = False  # keeps to the order above
    return InGroups(config, log)
