"""SHA-256 without OpenSSL: ``hashlib`` loads all of it, 4 MB of memory that an app on a small device does not need.

CPython's own module is the same algorithm (FIPS 180-4); it is what ``random`` of the standard library takes too,
for the same reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol, cast


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


def sha256(content: bytes = b"") -> Digest:
    """A running SHA-256 that has taken in ``content``."""
    digest = _new()
    digest.update(content)
    return digest
