"""Transcripts in a folder, as people and programs drop them, and the program run over them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SAMPLE = Path(__file__).parents[3] / "samples/raspberry_pi/meeting_minutes"


@dataclass
class Tray:
    """Three folders and the program over them."""

    root: Path
    bundle: Path

    def options(self) -> list[str]:
        return [f"--{name}={self.root / name}" for name in ("inbox", "outbox", "rejected")]

    def once(self, *options: str, settle: str = "0") -> subprocess.CompletedProcess[str]:
        """Run it over what is there."""
        command = [sys.executable, str(SAMPLE / "meeting_minutes.py"), f"--bundle={self.bundle}", "--once"]
        command += [f"--settle={settle}", *self.options(), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, errors="replace", check=False)

    def files(self) -> set[str]:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}

    def drop(self, name: str, content: str | bytes) -> Path:
        path = self.root / "inbox" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@pytest.fixture
def tray(tmp_path: Path, tiny_bundle: Path) -> Tray:
    (tmp_path / "tray/inbox").mkdir(parents=True)
    return Tray(tmp_path / "tray", tiny_bundle)


@pytest.mark.slow
def test_transcripts_become_minutes(tray: Tray, meeting: str) -> None:
    tray.drop("2024-03-12_fair.vtt", meeting)
    tray.drop("talk.txt", "Anna: Good morning to all of you.\r\nBob: We agreed to take hall 3.\r\n")
    tray.drop("film.srt", "\ufeff1\n00:00:01,000 --> 00:00:02,000\nThe spring fair is nearer than hall 5.\n")
    tray.drop("short.txt", "Hello.")
    tray.drop("photo.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF")
    tray.drop("empty.txt", "")
    tray.drop("blank.vtt", "WEBVTT\n\n")
    tray.drop("old.txt", "Anna: caf\xe9\n".encode("latin-1"))
    tray.drop("late.txt.part", "Anna: hi")
    done = tray.once()
    assert done.returncode == 0, done.stderr
    assert tray.files() == {
        "outbox/2024-03-12_fair.vtt", "outbox/2024-03-12_fair.md", "outbox/talk.txt", "outbox/talk.md",
        "outbox/film.srt", "outbox/film.md", "outbox/short.txt", "outbox/short.md",
        "rejected/photo.jpg", "rejected/photo.jpg.reason.txt", "rejected/empty.txt", "rejected/empty.txt.reason.txt",
        "rejected/blank.vtt", "rejected/blank.vtt.reason.txt", "rejected/old.txt", "rejected/old.txt.reason.txt",
        "inbox/late.txt.part",
    }  # fmt: skip
    text = (tray.root / "outbox/2024-03-12_fair.md").read_text(encoding="utf-8")
    assert text.startswith("# 2024-03-12 fair\n")
    assert "summarised by tiny" in text
    assert "- [ ] **Ravi Shah**: sign the contract (by Friday)" in text
    assert "\nHello.\n" in (tray.root / "outbox/short.md").read_text(encoding="utf-8")
    assert "“We agreed to take hall 3.” (Bob)" in (tray.root / "outbox/talk.md").read_text(encoding="utf-8")
    reasons = {path.name: path.read_text() for path in (tray.root / "rejected").glob("*.reason.txt")}
    assert "not a text" in reasons["photo.jpg.reason.txt"]
    assert "no words" in reasons["empty.txt.reason.txt"]
    assert "no words" in reasons["blank.vtt.reason.txt"]
    assert "iconv" in reasons["old.txt.reason.txt"]
    assert "4 minutes written, 4 files rejected" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
def test_every_runtime_takes_minutes(tray: Tray, summarizer_bundle: Path, runtime: str) -> None:
    whole = Tray(tray.root, summarizer_bundle)
    whole.drop("talk.txt", "Anna: It was cold. Today with some friends after lunch.\nBob: We agreed to go again.\n")
    done = whole.once(f"--runtime={runtime}", "--threads=1")
    assert done.returncode == 0, done.stderr
    text = (tray.root / "outbox/talk.md").read_text(encoding="utf-8")
    assert "- Anna\n- Bob\n" in text
    assert "“We agreed to go again.” (Bob)" in text
    assert "summarised by facts" in text


@pytest.mark.slow
def test_equal_names_and_a_second_time(tray: Tray) -> None:
    tray.drop("talk.txt", "Anna: Good morning to all of you here.\n")
    assert tray.once().returncode == 0
    tray.drop("talk.txt", "Anna: Good evening to all of you there.\n")
    tray.drop("talk.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\nThe floor plan is nearer to the heating.\n")
    assert tray.once().returncode == 0
    assert {name for name in tray.files() if name.endswith(".md")} == {
        "outbox/talk.md", "outbox/talk-2.md", "outbox/talk-3.md",
    }  # fmt: skip
    assert {name for name in tray.files() if not name.endswith(".md")} == {
        "outbox/talk.txt", "outbox/talk-2.txt", "outbox/talk.vtt",
    }  # fmt: skip
    # as after a power cut between writing the minutes and moving the transcript
    (tray.root / "outbox/talk-2.txt").rename(tray.root / "inbox/talk.txt")
    (tray.root / "outbox/talk.txt").unlink()
    (tray.root / "outbox/talk.md").unlink()
    before = (tray.root / "outbox/talk-2.md").read_text()
    assert tray.once().returncode == 0
    assert (tray.root / "outbox/talk.md").read_text() == before


@pytest.mark.slow
def test_limits_links_and_odd_names(tray: Tray, tmp_path: Path) -> None:
    tray.drop("big.txt", "Anna: words.\n" * 1000)
    name = "ü" * 120 + ".txt"
    tray.drop(name, "Anna: Good morning to all of you.\n")
    (tmp_path / "secret.txt").write_text("Anna: this must not be read.\n")
    (tray.root / "inbox/link.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(tray.root / "inbox/pipe.txt")
    (tray.root / "inbox/folder.txt").mkdir()
    done = tray.once("--max-bytes=5000")
    assert done.returncode == 0, done.stderr
    assert "more than the 5,000" in (tray.root / "rejected/big.txt.reason.txt").read_text()
    assert f"outbox/{'ü' * 120}.md" in tray.files()
    assert done.stderr.count("left where it is") == 3
    assert (tray.root / "inbox/link.txt").is_symlink()


@pytest.mark.slow
def test_the_service_watches_and_serves(
    tray: Tray, start: Callable[..., Any], until: Callable[[Callable[[], bool]], None], meeting: str
) -> None:
    board = start(*tray.options(), "--interval=0.05", "--settle=0.2")
    tray.drop("fair.vtt", meeting)
    _, last = board.take(meeting).rest()
    assert last["reason"] == "done"
    until((tray.root / "outbox/fair.vtt").exists)
    assert (tray.root / "outbox/fair.md").read_text(encoding="utf-8") == last["markdown"]
    assert "wrote 'fair.md'" in board.log
    assert board.end() == 0


@pytest.mark.slow
def test_what_is_not_finished_stays_in_the_inbox(tray: Tray, start: Callable[..., Any], long_meeting: str) -> None:
    board = start(*tray.options(), "--interval=0.05", "--settle=0")
    tray.drop("long.txt", long_meeting * 20)
    time.sleep(1.0)  # it is at work by then, or has not begun: it stays in either case
    assert board.end() == 0
    assert tray.files() == {"inbox/long.txt"}


@pytest.mark.slow
def test_a_folder_has_one_program(tray: Tray, start: Callable[..., Any]) -> None:
    board = start(*tray.options())
    done = tray.once()
    assert (done.returncode, "another program" in done.stderr) == (4, True)
    assert board.end() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--inbox=a"], "go together"),
        (["--once"], "--once needs"),
        (["--port=70000"], "70000"),
        (["--settle=-1"], "3600 seconds"),
        (["--max-bytes=0"], "bytes"),
    ],
)
def test_wrong_usage(options: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SAMPLE / "meeting_minutes.py"), "--bundle=none", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_what_cannot_be_used_is_named(tray: Tray, small_bundle: Path, tmp_path: Path) -> None:
    same = [f"--{name}={tmp_path}" for name in ("inbox", "outbox", "rejected")]
    (tmp_path / "file").write_text("")
    for options, code, message in (
        ([f"--bundle={tmp_path / 'none'}"], 4, "none"),
        ([f"--bundle={small_bundle}"], 2, "classify"),
        (same, 4, "three folders"),
        ([f"--outbox={tmp_path / 'file'}"], 4, "--outbox"),
        (["--memory-mib=1"], 3, "MiB"),
    ):
        done = tray.once(*options)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
