"""Watches a folder of texts and files each by its topic, with an edgescribe bundle that classifies.

::

    python topic_tagger.py --bundle bundle --inbox inbox --outbox outbox --rejected rejected [--once]

A text goes from ``inbox/note.txt`` to ``outbox/TOPIC/note.txt`` once it is there in full. What is no text, is too
large or cannot be read goes to ``rejected/`` with the reason beside it. Names that begin with a dot or end with
``.part``, ``.tmp``, ``~`` and the like are left alone: write under such a name and rename, and a text is never
taken half-written, however slow the line. Subfolders, links and pipes stay where they are.

Nothing is kept beside the folders themselves, so the program may be stopped and started at any time. SIGTERM and
Ctrl-C end it after the text at hand. Exit codes: 0 done or stopped; 2 wrong usage; 4 the bundle or a folder cannot
be used; 5 no engine for the bundle is installed or it fails; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import edgescribe
import filing
from inbox import ChangedError, Inbox, Look, NotATextError, read_text
from service_manager import log_to_stderr, notify

LOG = logging.getLogger("topic_tagger")
UNSURE = "_unsure"
BAD_FOLDER = 4


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    bundle: Path
    inbox: Path
    outbox: Path
    rejected: Path
    once: bool
    interval: float
    settle: float
    max_bytes: int
    min_score: float
    runtime: str | None
    threads: int
    verbose: bool


class FolderError(Exception):
    """A folder that the program needs cannot be used; the message says which and why."""


class TopicTagger:
    """Takes texts out of the inbox until told to stop.

    Args:
        student: classifies the texts.
        options: the folders and limits.
        stop: set to end :meth:`run` after the text at hand.
    """

    def __init__(self, student: edgescribe.Student, options: Options, stop: threading.Event) -> None:
        self._student, self._options, self._stop = student, options, stop
        self._inbox = Inbox(options.inbox, options.settle)
        self._trouble = ""
        self.filed = self.rejected = 0

    def run(self) -> None:
        """Look, file, wait; with ``once`` two looks, as far apart as a file needs to settle."""
        self._pass()
        if self._options.once:
            if self._inbox.waiting and not self._stop.wait(self._options.settle):
                self._pass()
            if self._inbox.waiting:
                LOG.warning("left in the inbox: %d files, still being written or in trouble", self._inbox.waiting)
            return
        while not self._stop.wait(self._options.interval):
            self._pass()

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
        if whole:
            notify(f"STATUS={self.filed} filed, {self.rejected} rejected since the start")

    def _take(self, name: str, look: Look) -> None:
        """Deal with one file; whatever is wrong with it, the others get their turn."""
        path = self._options.inbox / name
        try:
            try:
                text = read_text(path, look, self._options.max_bytes)
                self._file(path, look, text)
            except (NotATextError, edgescribe.InputError) as error:
                filing.reject(path, self._options.rejected, str(error))
                self.rejected += 1
                LOG.warning("rejected %r: %s", name, error)
            self._inbox.done(name)
        except ChangedError:
            LOG.debug("%r is still being written", name)
        except FileNotFoundError as error:
            if path.exists():
                self._leave(name, error)
            else:
                LOG.info("%r was taken away by someone else", name)
                self._inbox.done(name)
        except OSError as error:
            self._leave(name, error)

    def _file(self, path: Path, look: Look, text: str) -> None:
        begin = time.perf_counter()
        found = self._student.classify(text)
        milliseconds = 1000 * (time.perf_counter() - begin)
        if Look.of(path.lstat()) != look:
            raise ChangedError
        sure = found.score >= self._options.min_score
        folder = filing.folder_name(found.label) if sure else UNSURE
        target = filing.move(path, self._options.outbox / folder)
        self.filed += 1
        place = target.relative_to(self._options.outbox)
        LOG.info("filed %r as %r (%s %.2f, %.0f ms)", path.name, str(place), found.label, found.score, milliseconds)

    def _leave(self, name: str, error: OSError) -> None:
        delay = self._inbox.put_off(name)
        LOG.error("%r stays in the inbox, next attempt in %.0f s: %s", name, delay, error)


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
        FolderError: another topic tagger holds one of them.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderError(f"{folder}: another topic tagger is at work there; stop it first") from None
            except OSError as error:
                if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                    raise FolderError(f"{folder}: cannot be locked: {error.strerror}") from None
                LOG.warning("%s: its file system has no locks; let no other topic tagger work there", folder)
        yield


def read_options(arguments: Sequence[str] | None) -> Options:
    """Read the command line; ends the program with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="topic_tagger.py", description="Watches a folder of texts and files each by its topic."
    )
    parser.add_argument("--bundle", type=Path, required=True, help="folder that edgescribe convert wrote")
    parser.add_argument("--inbox", type=Path, required=True, help="folder to watch")
    parser.add_argument("--outbox", type=Path, required=True, help="gets a folder for each topic")
    parser.add_argument("--rejected", type=Path, required=True, help="gets what is no text, with the reason")
    parser.add_argument("--once", action="store_true", help="file what is there, then end")
    parser.add_argument("--interval", type=_seconds, default=1.0, help="seconds between looks (%(default)s)")
    parser.add_argument("--settle", type=_seconds, default=2.0, help="seconds without change to be whole (%(default)s)")
    parser.add_argument("--max-bytes", type=_bytes, default=1 << 20, help="larger files are rejected (%(default)s)")
    parser.add_argument(
        "--min-score", type=_share, default=0.0, help=f"texts below this score go to {UNSURE} (%(default)s)"
    )
    parser.add_argument("--runtime", choices=("litert", "onnxruntime", "openvino"), help="engine; the best by default")
    parser.add_argument("--threads", type=int, default=0, help="engine's threads; 0: as many as fit the machine")
    parser.add_argument("--verbose", action="store_true", help="log more")
    return Options(**vars(parser.parse_args(arguments)))


def _seconds(value: str) -> float:
    number = float(value)
    if not 0 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"{value!r} is not between 0 and 3600 seconds")
    return number


def _bytes(value: str) -> int:
    number = int(value)
    if not 1 <= number <= 64 << 20:
        raise argparse.ArgumentTypeError(f"{value!r} is not between 1 and {64 << 20} bytes")
    return number


def _share(value: str) -> float:
    number = float(value)
    if math.isnan(number) or not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not between 0 and 1")
    return number


def work(options: Options, stop: threading.Event) -> None:
    """Open everything and run.

    Raises:
        FolderError: a folder cannot be used.
        edgescribe.EdgescribeError: the bundle cannot be loaded, or its engine fails.
    """
    named = {name: prepare(getattr(options, name), name) for name in ("inbox", "outbox", "rejected")}
    if len(set(named.values())) < len(named):
        raise FolderError("--inbox, --outbox and --rejected have to be three folders")
    options = Options(**{**vars(options), **named})
    with (
        claimed(list(named.values())),
        edgescribe.load(options.bundle, runtime=options.runtime, threads=options.threads) as student,
    ):
        if student.info.task != "classify":
            raise edgescribe.BundleError(
                f"{options.bundle}: its student does not classify, its task is {student.info.task}; give another bundle"
            )
        for folder in (options.outbox, options.rejected):
            filing.remove_unfinished_copies(folder)
        used = student.effective
        LOG.info(
            "watching %s: %s, %d topics, %s %s, %d threads",
            options.inbox, student.info.name, len(student.info.labels), used.engine, used.engine_version, used.threads,
        )  # fmt: skip
        notify("READY=1")
        tagger = TopicTagger(student, options, stop)
        tagger.run()
        notify("STOPPING=1")
        LOG.info("ended: %d filed, %d rejected", tagger.filed, tagger.rejected)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = read_options(arguments)
    log_to_stderr(options.verbose)
    logging.captureWarnings(True)
    stop = threading.Event()
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        work(options, stop)
    except FolderError as error:
        LOG.error("%s", error)
        return BAD_FOLDER
    except edgescribe.EdgescribeError as error:
        LOG.error("%s", error)
        return error.exit_code
    return 130 if signal.SIGINT in received else 0


if __name__ == "__main__":
    sys.exit(main())
