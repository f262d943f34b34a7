"""The topic tagger as a person starts it: its folders, its process, its log."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "samples/raspberry_pi/topic_tagger"
sys.path.insert(0, str(SAMPLE))  # its modules import each other by bare name, as they do on the device
PATIENCE = 60.0  # seconds to wait for something that has to happen


@dataclass
class Tagger:
    """Folders of one topic tagger and the ways to run it."""

    root: Path
    bundle: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inbox.mkdir(parents=True)

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def outbox(self) -> Path:
        return self.root / "outbox"

    @property
    def rejected(self) -> Path:
        return self.root / "rejected"

    def command(self, *options: str) -> list[str]:
        folders = [f"--{name}={getattr(self, name)}" for name in ("bundle", "inbox", "outbox", "rejected")]
        return [sys.executable, str(SAMPLE / "topic_tagger.py"), *folders, *options]

    def once(self, *options: str, settle: str = "0") -> subprocess.CompletedProcess[str]:
        """Run it over what is there."""
        command = self.command("--once", f"--settle={settle}", *options)
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, errors="replace", check=False)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start it for good; it is killed at the test's end."""
        process = subprocess.Popen(
            self.command("--interval=0.05", "--settle=0.2", *options), stderr=subprocess.PIPE, text=True
        )
        self.running.append(process)
        return process

    def files(self, folder: Path | None = None) -> set[str]:
        """Paths of all files below the root, or below a folder."""
        root = folder or self.root
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def tagger(tmp_path: Path, small_bundle: Path) -> Iterator[Tagger]:
    made = Tagger(tmp_path / "tagger", small_bundle)
    yield made
    for process in made.running:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for a condition, failing after a long while."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it never came about"
            time.sleep(0.02)

    return wait


@pytest.fixture
def ended() -> Callable[[subprocess.Popen[str], signal.Signals], tuple[int, str]]:
    """Sends a signal, and gives the exit code and the log."""

    def end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
        process.send_signal(number)
        _, log = process.communicate(timeout=PATIENCE)
        return process.returncode, log

    return end
