"""Moving files: never lost, never overwritten, also to another file system and after a crash."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def filing() -> Any:
    import filing

    return filing


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than ``tmp_path``."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system that can be written: /dev/shm is missing or holds the test's folder too")
    folder = shared / f"topic-tagger-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@given(st.text())
@example("..")
@example("../../etc")
@example("a/b\\c:d\0e")
@example("\ud800")
@example("語" * 200)
@example(" . ")
def test_any_label_is_one_plain_folder_name(filing: Any, label: str) -> None:
    name = filing.folder_name(label)
    assert name
    assert not name.startswith(".")
    assert not set(name) & set("/\\:\0\n\r")
    assert len(name.encode()) <= 100


def test_sections_of_debian_keep_their_names(filing: Any) -> None:
    assert [filing.folder_name(label) for label in ("gnu-r", "net", "c++ 2")] == ["gnu-r", "net", "c++ 2"]


NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & set(b"/\0") and name.strip(b".") != b"")


@settings(max_examples=100, deadline=None)
@given(name=NAMES, bodies=st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=6))
@example(name=b"x" * 255, bodies=[b"1", b"2", b"3"])
@example(name=b"a." + b"y" * 253, bodies=[b"1", b"2"])
@example(name=b".profile", bodies=[b"1", b"2"])
def test_every_content_is_kept_under_any_name(
    filing: Any, tmp_path_factory: pytest.TempPathFactory, name: bytes, bodies: list[bytes]
) -> None:
    root = tmp_path_factory.mktemp("names")
    (root / "in").mkdir()
    for body in bodies:
        source = root / "in" / os.fsdecode(name)
        source.write_bytes(body)
        target = filing.move(source, root / "out")
        assert not source.exists()
        assert target.read_bytes() == body
    assert sorted(contents(root / "out").values()) == sorted(set(bodies))


def test_to_another_file_system(filing: Any, tmp_path: Path, elsewhere: Path) -> None:
    source = tmp_path / "note.txt"
    source.write_text("hello")
    source.chmod(0o640)
    os.utime(source, (1_000_000_000, 1_000_000_000))
    target = filing.move(source, elsewhere / "net")
    assert contents(elsewhere) == {"net/note.txt": b"hello"}
    assert not source.exists()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert target.stat().st_mtime == 1_000_000_000


def test_a_full_disk_leaves_the_text_where_it_was(filing: Any, tmp_path: Path, elsewhere: Path) -> None:
    import resource

    source = tmp_path / "note.txt"
    source.write_bytes(b"x" * 100_000)
    # a limit on file size fails a write in its midst, as a full disk does
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            filing.move(source, elsewhere)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert source.stat().st_size == 100_000
    assert contents(elsewhere) == {}


def test_a_reservation_that_a_crash_left_is_taken_over(filing: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/note.txt").touch(mode=0o600)
    (tmp_path / "note.txt").write_text("hello")
    assert filing.move(tmp_path / "note.txt", tmp_path / "out").name == "note.txt"
    assert contents(tmp_path) == {"out/note.txt": b"hello"}


def test_copies_that_a_crash_left_are_removed(filing: Any, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    for name in (f"net/.note.txt{filing.COPY_SUFFIX}", f".x{filing.COPY_SUFFIX}", "net/note.txt", "net/.keep"):
        (tmp_path / name).write_text("half")
    filing.remove_unfinished_copies(tmp_path)
    assert set(contents(tmp_path)) == {"net/note.txt", "net/.keep"}


def test_a_source_that_is_gone_leaves_nothing_behind(filing: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        filing.move(tmp_path / "gone.txt", tmp_path / "out")
    assert contents(tmp_path) == {}


def test_a_link_in_the_target_folder_is_not_written_through(filing: Any, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/note.txt").symlink_to(tmp_path / "precious")
    (tmp_path / "note.txt").write_text("hello")
    assert filing.move(tmp_path / "note.txt", tmp_path / "out").name == "note-2.txt"
    assert (tmp_path / "precious").read_text() == ""
    assert (tmp_path / "out/note.txt").is_symlink()


def test_the_reason_stands_beside_a_file_with_the_longest_name(filing: Any, tmp_path: Path) -> None:
    source = tmp_path / ("x" * 255)
    source.write_bytes(b"\0")
    filing.reject(source, tmp_path / "rejected", "not a text")
    assert sorted(contents(tmp_path / "rejected").values()) == [b"\0", b"not a text\n"]
