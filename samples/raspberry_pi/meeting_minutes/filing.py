"""Moving a file into a folder so that nothing is lost, overwritten or left half-written, whenever the power fails.

A name in the target folder is reserved first, by creating it empty and exclusively; then the file is renamed onto
the reservation, which is one step for the file system. Where the folder lies on another file system, the file is
copied beside it, flushed to the disk, renamed, and only then removed from where it was. What a crash can leave is an
empty reservation, which is taken over next time, or a file that stands in both places, which is noticed by its
content and not filed twice.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

NAME_BYTES = 255  # what Linux file systems take
COPY_SUFFIX = ".topic-tagger-copy"
SIDECAR_SUFFIX = ".reason.txt"
MAX_SAME_NAMES = 10_000
MAX_COMPARED = 64 << 20  # bytes; two larger files of one name and size are taken for different


def folder_name(label: str) -> str:
    """A topic as the name of one folder: never a path, never hidden, at most 100 bytes."""
    safe = re.sub(r"[^\w.+ -]", "_", label)
    safe = safe.encode("utf-8", "replace")[:100].decode("utf-8", "ignore").strip(" .")
    return safe or "unnamed"


def move(source: Path, folder: Path) -> Path:
    """Move a file into ``folder``, made where it is missing, and return its new place.

    A name that is taken gets a number: ``note.txt``, ``note-2.txt``, ... A file of the same name and content that
    is there already counts as this one.

    Raises:
        OSError: the source went away, the folder cannot be written, the disk is full; the source is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _names(source.name):
        target = folder / name
        if not _reserve(target):
            if _same_content(source, target):
                source.unlink()
                return target
            if not _is_reservation(target):
                continue
        try:
            _move_onto(source, target)
        except BaseException:
            if _is_reservation(target):
                with contextlib.suppress(OSError):
                    target.unlink()
            raise
        return target
    raise OSError(errno.EEXIST, f"{MAX_SAME_NAMES:,} files of this name are there already", str(folder))


def reject(source: Path, folder: Path, reason: str) -> Path:
    """Move a file into ``folder`` and write the reason beside it, as ``NAME.reason.txt``."""
    target = move(source, folder)
    name = os.fsencode(target.name)[: NAME_BYTES - len(SIDECAR_SUFFIX)] + SIDECAR_SUFFIX.encode()
    # the file itself is safe by now: a full disk costs the note, which the log has as well
    with contextlib.suppress(OSError):
        (folder / os.fsdecode(name)).write_text(reason + "\n", encoding="utf-8")
    return target


def remove_unfinished_copies(folder: Path) -> None:
    """Remove what a crash in the midst of copying left in ``folder`` and in the folders right below it."""
    for pattern in (f".*{COPY_SUFFIX}", f"*/.*{COPY_SUFFIX}"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()


def _names(name: str) -> Iterator[str]:
    yield name
    stem, dot, ending = name.rpartition(".")
    if not stem:
        stem, dot, ending = name, "", ""
    tail = os.fsencode(dot + ending)
    for number in range(2, MAX_SAME_NAMES + 1):
        end = f"-{number}".encode() + tail[:100]
        yield os.fsdecode(os.fsencode(stem)[: NAME_BYTES - len(end)] + end)


def _reserve(target: Path) -> bool:
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def _is_reservation(target: Path) -> bool:
    try:
        found = target.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def _same_content(source: Path, target: Path) -> bool:
    try:
        found, size = target.lstat(), source.lstat().st_size
        if not stat.S_ISREG(found.st_mode) or found.st_size != size or not 0 < size <= MAX_COMPARED:
            return False
        filecmp.clear_cache()
        return filecmp.cmp(source, target, shallow=False)
    except OSError:  # not readable: taken for different, so that nothing is removed
        return False


def _move_onto(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    copy = target.parent / os.fsdecode(b"." + os.fsencode(target.name)[:200] + os.fsencode(COPY_SUFFIX))
    try:
        with source.open("rb") as old, copy.open("wb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())
        with contextlib.suppress(OSError):  # FAT keeps neither
            shutil.copystat(source, copy)
        copy.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            copy.unlink()
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    source.unlink()
