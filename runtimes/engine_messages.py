"""Keeps an engine's announcements off the terminal where it has no setting for that."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO, cast

_LOCK = threading.RLock()  # a session may be thrown away, and say so, while another is opened
_STDERR = 2


@contextlib.contextmanager
def without_info_lines(*others: str) -> Iterator[None]:
    """Drop lines that start with ``INFO:`` from what native code writes to standard error meanwhile.

    ``others``: starts of further lines to drop.

    All other lines, of this thread and others, are written when the context ends, in their order. Without a
    standard error, or a place for a temporary file, nothing is held back.
    """
    starts = (b"INFO:", *(other.encode() for other in others))
    with _LOCK, contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(_nameless_file())
            real = os.dup(_STDERR)
        except OSError:
            yield
            return
        _flush()
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            _flush()
            os.dup2(real, _STDERR)
            os.close(real)
            held.seek(0)
            for line in held:
                if not line.startswith(starts):
                    os.write(_STDERR, line)


def _nameless_file() -> BinaryIO:
    try:
        return os.fdopen(os.memfd_create("messages", os.MFD_CLOEXEC), "w+b")
    except (AttributeError, OSError):
        # Imported here: it takes 0.8 MB of memory.
        import tempfile

        return cast("BinaryIO", tempfile.TemporaryFile())


def _flush() -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()


@functools.cache
def drop_native_lines_at_exit() -> None:
    """Drop what native code writes to standard error while the process ends, once Python's own exit is under way.

    For engines that announce there what they throw away. What Python writes still arrives.
    """
    atexit.register(_move_standard_error)


def _move_standard_error() -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if sys.stderr.fileno() != _STDERR:
            return
        sys.stderr.flush()
        copy = os.dup(_STDERR)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STDERR)
        os.close(nowhere)
        sys.stderr = os.fdopen(copy, "w", buffering=1, encoding=sys.stderr.encoding, closefd=False)
