"""Which files of a folder are there in full, and what text is in them.

The folder is looked at again and again (polling): that needs no kernel interface, works on network shares and USB
sticks as well, and costs next to nothing at one look a second. A file counts as whole when its size and time of
change stayed the same between looks for a while by this process's own clock: a Raspberry Pi without network starts
with a wrong date, so that the file's own time tells nothing.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: Names that programs give to files which they are still writing.
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart", ".swp", "~")
FIRST_RETRY, LAST_RETRY = 5.0, 600.0  # seconds between attempts at a file that could not be dealt with


class NotATextError(Exception):
    """The file will not do as it is; the message says why and what would help."""


class ChangedError(Exception):
    """The file changed or went away while it was read; look again later."""


@dataclass(frozen=True)
class Look:
    """What tells one state of a file from another."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Look:
        """Taken from a stat."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass
class _Seen:
    look: Look
    since: float  # the clock when this state was first seen
    not_before: float = 0.0
    delay: float = FIRST_RETRY


class Inbox:
    """A folder into which others put files.

    Args:
        folder: the folder; not its subfolders.
        settle: seconds for which a file must not change before it is taken.
        clock: seconds that only go up.
    """

    def __init__(self, folder: Path, settle: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._settle, self._clock = settle, clock
        self._seen: dict[str, _Seen] = {}
        self._told: set[str] = set()

    @property
    def waiting(self) -> int:
        """Files that the last look found and that are not dealt with yet."""
        return len(self._seen)

    def look(self) -> tuple[list[tuple[str, Look]], list[str]]:
        """Look at the folder once.

        Returns:
            Names and states of the files that are whole, by name; and the names, each told once, of things that
            are no files (folders, links, pipes) and stay where they are.

        Raises:
            OSError: the folder cannot be listed.
        """
        now = self._clock()
        seen: dict[str, _Seen] = {}
        whole, others = [], set()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.endswith(UNFINISHED):
                    continue
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:  # gone again
                    continue
                if not stat.S_ISREG(found.st_mode):
                    others.add(entry.name)
                    continue
                look = Look.of(found)
                before = self._seen.get(entry.name)
                state = before if before is not None and before.look == look else _Seen(look, now)
                seen[entry.name] = state
                if now - state.since >= self._settle and now >= state.not_before:
                    whole.append((entry.name, look))
        news = sorted(others - self._told)
        self._seen, self._told = seen, others
        return sorted(whole), news

    def done(self, name: str) -> None:
        """The file was dealt with."""
        self._seen.pop(name, None)

    def put_off(self, name: str) -> float:
        """Leave the file for a while, longer each time; returns for how many seconds."""
        state = self._seen.get(name)
        if state is None:
            return 0.0
        delay, state.delay = state.delay, min(2 * state.delay, LAST_RETRY)
        state.not_before = self._clock() + delay
        return delay


def read_text(path: Path, look: Look, max_bytes: int) -> str:
    """The text of a file which is still as ``look`` saw it.

    UTF-8, with or without a byte order mark, or UTF-16 with one. A file that is too large is not read at all.

    Raises:
        NotATextError: it is too large, empty, not text, or not to be read by this user.
        ChangedError: it is not the file that was looked at.
        OSError: the disk failed.
    """
    if look.size > max_bytes:
        raise NotATextError(f"{look.size:,} bytes, more than the {max_bytes:,} that --max-bytes allows")
    data = b"".join(_read(path, look))
    if not data:
        raise NotATextError("the file is empty")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise NotATextError(
            f"not a text in {error.encoding.upper()} (byte {error.start:,}); an older text file can be converted "
            "with: iconv -f latin1 -t utf8"
        ) from None
    if "\0" in text:
        raise NotATextError("not a text: it has null bytes")
    if not text.strip():
        raise NotATextError("nothing but white space is in it")
    return text


def _read(path: Path, look: Look) -> Iterator[bytes]:
    # never waits for a pipe's other end and never follows a link that took the file's place since the look
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ChangedError from None
    except PermissionError:
        raise NotATextError("this user may not read it; give it read permission (chmod a+r) and drop it anew") from None
    with os.fdopen(handle, "rb") as file:
        if Look.of(os.fstat(handle)) != look:
            raise ChangedError
        yield file.read(look.size)
        if Look.of(os.fstat(handle)) != look:
            raise ChangedError
