"""SHA-256 without OpenSSL for all but large files: ``hashlib`` loads all of it, 4 MB of memory that an app on a small
device does not need.

CPython's own module is the same algorithm (FIPS 180-4); it is what ``random`` of the standard library takes too,
for the same reason. OpenSSL's uses the processor's instructions for it and takes a seventh of the time, so that files
next to which 4 MB are little are hashed by that.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol, cast

LARGE = 32 << 20
"""Bytes from which on OpenSSL is worth its memory."""


class Digest(Protocol):
    """A running hash."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far in hexadecimal, 64 characters."""
        ...


def _constructor() -> Callable[[], Digest]:
    for module in ("_sha256", "_sha2"):  # its name up to Python 3.11, and from 3.12
        try:
            return cast("Callable[[], Digest]", importlib.import_module(module).sha256)
        except (ImportError, AttributeError):
            continue
    return cast("Callable[[], Digest]", importlib.import_module("hashlib").sha256)


_new = _constructor()


def sha256(content: bytes = b"", to_come: int = 0) -> Digest:
    """A running SHA-256 that has taken in ``content``; ``to_come``: about how many bytes will follow."""
    new = _new if len(content) + to_come < LARGE else importlib.import_module("hashlib").sha256
    digest: Digest = new()
    digest.update(content)
    return digest
