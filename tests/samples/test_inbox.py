"""When a file counts as whole, by a clock that the test turns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def box(tmp_path: Path, clock: Clock) -> Any:
    from inbox import Inbox

    return Inbox(tmp_path, 2.0, clock)


def whole(box: Any) -> list[str]:
    return [name for name, _ in box.look()[0]]


def test_taken_once_it_stayed_the_same(box: Any, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "a").write_text("one")
    assert whole(box) == []
    clock.now += 1.9
    assert whole(box) == []
    (tmp_path / "a").write_text("one two")
    clock.now += 1.9
    assert whole(box) == []
    clock.now += 2.0
    assert whole(box) == ["a"]


def test_the_files_own_time_means_nothing(box: Any, tmp_path: Path, clock: Clock) -> None:
    for name, time in (("old", 0), ("future", 2**33)):
        (tmp_path / name).write_text("one")
        os.utime(tmp_path / name, (time, time))
    assert whole(box) == []
    clock.now += 2
    assert whole(box) == ["future", "old"]


def test_another_file_of_the_same_name_starts_anew(box: Any, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "a").write_text("one")
    box.look()
    clock.now += 2
    (tmp_path / "b.tmp").write_text("two")
    (tmp_path / "b.tmp").rename(tmp_path / "a")
    assert whole(box) == []


def test_put_off_for_longer_each_time_until_it_changes(box: Any, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "a").write_text("one")
    box.look()
    delays = []
    for _ in range(9):
        clock.now += 1000
        assert whole(box) == ["a"]
        delays.append(box.put_off("a"))
        assert whole(box) == []
    assert delays == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    (tmp_path / "a").write_text("other")
    box.look()
    clock.now += 2
    assert whole(box) == ["a"]


def test_forgets_what_went_away(box: Any, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "a").write_text("one")
    box.look()
    (tmp_path / "a").unlink()
    box.look()
    assert box.waiting == 0
    assert box.put_off("a") == 0


def test_a_file_that_changed_since_the_look_is_not_read(tmp_path: Path) -> None:
    from inbox import ChangedError, Look, read_text

    path = tmp_path / "a"
    path.write_text("one")
    look = Look.of(path.stat())
    assert read_text(path, look, 100) == "one"
    path.write_text("one two")
    with pytest.raises(ChangedError):
        read_text(path, look, 100)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic"):
        read_text(path, look, 100)
    path.unlink()
    with pytest.raises(ChangedError):
        read_text(path, look, 100)
