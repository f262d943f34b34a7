"""Transcripts dropped into a folder become minutes in another.

``inbox/monday.vtt`` goes to ``outbox/monday.vtt`` once ``outbox/monday.md`` is there. What is no transcript goes to
``rejected/`` with the reason beside it. Nothing else is kept, so the program may be stopped at any time: a transcript
whose minutes were not finished is still in the inbox.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import edgescribe
import filing
from inbox import ChangedError, Inbox, Look, NotATextError
from minutes import MinuteTaker, Summarizes, title_of
from minutes_markdown import as_markdown

LOG = logging.getLogger("meeting_minutes")
MAKING = ".making"


class FolderError(Exception):
    """A folder that the program needs cannot be used; the message says which and why."""


class _StoppedError(Exception):
    """The program is ending."""


@dataclass(frozen=True)
class Folders:
    """Three folders, and when a file in the first counts as whole.

    Attributes:
        inbox, outbox, rejected: the folders.
        interval: seconds between looks.
        settle: seconds without change after which a file is whole.
        max_bytes: larger files are rejected.
    """

    inbox: Path
    outbox: Path
    rejected: Path
    interval: float = 1.0
    settle: float = 2.0
    max_bytes: int = 64 << 20


class MinutesFolder:
    """Takes transcripts out of the inbox until told to stop.

    Args:
        summarizer: writes the summaries.
        student: who that is, for the minutes.
        folders: where.
        stop: set to end :meth:`run` after the part of a transcript at hand, which stays in the inbox.
    """

    def __init__(self, summarizer: Summarizes, student: str, folders: Folders, stop: threading.Event) -> None:
        self._summarizer, self._student, self._folders, self._stop = summarizer, student, folders, stop
        self._inbox = Inbox(folders.inbox, folders.settle)
        self._trouble = ""
        self.written = self.rejected = 0

    def run(self) -> None:
        """Look, write, wait, until stopped."""
        while True:
            self._pass()
            if self._stop.wait(self._folders.interval):
                return

    def run_once(self) -> None:
        """Write the minutes of what is there: two looks, as far apart as a file needs to settle."""
        self._pass()
        if self._inbox.waiting and not self._stop.wait(self._folders.settle):
            self._pass()
        if self._inbox.waiting:
            LOG.warning("left in the inbox: %d files, still being written or in trouble", self._inbox.waiting)

    def _pass(self) -> None:
        try:
            whole, others = self._inbox.look()
        except OSError as error:
            if self._trouble != str(error):  # once, and not with every look
                LOG.error("the inbox cannot be looked at, trying on: %s", error)
            self._trouble = str(error)
            return
        if self._trouble:
            LOG.info("the inbox is there again")
            self._trouble = ""
        for name in others:
            LOG.warning("%r is a folder, link or device: left where it is", name)
        for name, look in whole:
            if self._stop.is_set():
                return
            self._take(name, look)

    def _take(self, name: str, look: Look) -> None:
        """Deal with one file; whatever is wrong with it, the others get their turn."""
        path = self._folders.inbox / name
        try:
            try:
                self._write(path, look)
            except (NotATextError, edgescribe.InputError) as error:
                reason = str(error).replace(f"{path}: ", "")
                filing.reject(path, self._folders.rejected, reason)
                self.rejected += 1
                LOG.warning("rejected %r: %s", name, reason)
            self._inbox.done(name)
        except _StoppedError:
            LOG.info("%r stays in the inbox: the program is ending", name)
        except ChangedError:
            LOG.debug("%r is still being written", name)
        except FileNotFoundError as error:
            if path.exists():
                self._leave(name, error)
            else:
                LOG.info("%r was taken away by someone else", name)
                self._inbox.done(name)
        except (OSError, edgescribe.EngineError) as error:
            self._leave(name, error)

    def _write(self, path: Path, look: Look) -> None:
        begin = time.perf_counter()
        report = edgescribe.TranscriptReport()
        with _opened(path, look, self._folders.max_bytes) as file:
            taker = MinuteTaker(title_of(path.name), edgescribe.read_transcript(file, report), report, self._summarizer)
            for _ in taker.run():
                if self._stop.is_set():
                    raise _StoppedError
        if taker.minutes.reason == "empty" and not report.turns:
            raise NotATextError("there are no words in it")
        if Look.of(path.lstat()) != look:
            raise ChangedError
        place = self._keep(path.name, as_markdown(taker.minutes, self._student))
        filing.move(path, self._folders.outbox)
        self.written += 1
        LOG.info(
            "wrote %r: %d turns, %d decisions, %d action items, %.1f s",
            place.name, report.turns, len(taker.minutes.decisions), len(taker.minutes.actions),
            time.perf_counter() - begin,
        )  # fmt: skip

    def _keep(self, name: str, text: str) -> Path:
        """Write the minutes beside the outbox's others: whole, or not at all."""
        making = self._folders.outbox / MAKING
        making.mkdir(exist_ok=True)
        stem = name.rpartition(".")[0] or name
        draft = making / os.fsdecode(os.fsencode(stem)[: filing.NAME_BYTES - 3] + b".md")
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return filing.move(draft, self._folders.outbox)

    def _leave(self, name: str, error: Exception) -> None:
        delay = self._inbox.put_off(name)
        LOG.error("%r stays in the inbox, next attempt in %.0f s: %s", name, delay, error)


@contextlib.contextmanager
def _opened(path: Path, look: Look, max_bytes: int) -> Iterator[BinaryIO]:
    if look.size > max_bytes:
        raise NotATextError(f"{look.size:,} bytes, more than the {max_bytes:,} that --max-bytes allows")
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
        yield file


def prepare(folder: Path, name: str) -> Path:
    """Make a folder where it is missing, see that it can be written, and return it without links.

    Raises:
        FolderError: it cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole = folder.resolve(strict=True)
    except OSError as error:
        raise FolderError(f"--{name} {folder}: {error.strerror}; give a folder that this user may write") from None
    if not os.access(whole, os.R_OK | os.W_OK | os.X_OK):
        raise FolderError(f"--{name} {folder}: this user may not write there; change its owner or give another folder")
    return whole


@contextlib.contextmanager
def claimed(folders: Sequence[Path]) -> Iterator[None]:
    """Hold the folders for this process alone, by a lock on the folder itself that ends with the process.

    Raises:
        FolderError: another program of this kind holds one of them.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderError(f"{folder}: another program writes minutes there; stop it first") from None
            except OSError as error:
                if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                    raise FolderError(f"{folder}: cannot be locked: {error.strerror}") from None
                LOG.warning("%s: its file system has no locks; let no other program write minutes there", folder)
        yield
