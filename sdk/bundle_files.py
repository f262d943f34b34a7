"""The files of a bundle: which paths are allowed, how they are opened, and their SHA-256.

A path in a manifest comes from outside and is not trusted: it must stay inside the bundle's folder by its
spelling and, links followed, by where it really leads, and must end at a regular file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import BundleError
from .manifest import FileEntry
from .sha256 import sha256

MANIFEST_NAME = "bundle.json"
SEAL_NAME = "bundle.json.sha256"
"""Holds the manifest's own hash in the format of ``sha256sum`` (check by hand: ``sha256sum -c bundle.json.sha256``)."""

CHUNK_BYTES = 1 << 18
REMEDY = "copy the bundle again from where it was made, or convert the student again"


def check_relative_path(path: str) -> None:
    """Check the spelling of a manifest's path: relative, forward slashes, no ``..``, nothing a file system reads anew.

    Raises:
        BundleError: it could lead out of the bundle, or means different files on different systems.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        fault = "is absolute, or has an empty, '.' or '..' part"
    elif any(ord(character) < 32 or character in '\\:*?"<>|\x7f' for character in path):
        fault = "holds a backslash, a colon or another character that file systems read differently"
    elif any(part.endswith((" ", ".")) for part in parts):
        fault = "has a part that ends in a blank or a dot"
    elif path.lower() in (MANIFEST_NAME, SEAL_NAME):
        fault = "is the name of the manifest itself"
    else:
        return
    raise BundleError(
        f"the path {path!r} in {MANIFEST_NAME} {fault}; a bundle's files lie inside its folder: do not use this "
        "bundle unless you know who changed it, and convert the student again"
    )


@contextmanager
def open_inside(folder: Path, path: str) -> Iterator[BinaryIO]:
    """Open a file of the bundle for reading; ``folder`` is resolved already.

    Raises:
        BundleError: it is missing, unreadable, not a regular file, or a link that leads out of ``folder``.
    """
    try:
        real = (folder / path).resolve(strict=True)
    except FileNotFoundError:
        raise BundleError(f"{folder}: the file {path!r} is missing; {REMEDY}") from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise BundleError(f"{folder}: the file {path!r} cannot be reached ({error}); {REMEDY}") from None
    if not real.is_relative_to(folder):
        raise BundleError(f"{folder}: {path!r} is a link that leads out of the bundle, to {real}; {REMEDY}")
    # Without O_NONBLOCK opening a named pipe would wait for a writer for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(real, flags | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise BundleError(
            f"{folder}: the file {path!r} cannot be opened ({error.strerror}); make it readable, or {REMEDY}"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{folder}: {path!r} is not a regular file; {REMEDY}")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        try:
            yield file
        except OSError as error:
            raise BundleError(f"{folder}: the file {path!r} cannot be read ({error}); {REMEDY}") from error


def read_limited(folder: Path, path: str, limit: int) -> bytes:
    """The whole content of a file of at most ``limit`` bytes.

    Raises:
        BundleError: as :func:`open_inside`, or it is larger.
    """
    with open_inside(folder, path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise BundleError(f"{folder}: {path!r} has {size:,} bytes, more than the {limit:,} allowed; {REMEDY}")
        content = bytearray()
        # By chunks of fixed size: a read takes memory for all it is asked for, and the C library then holds on to it.
        while len(content) <= limit and (chunk := file.read(min(CHUNK_BYTES, limit + 1 - len(content)))):
            content += chunk
    return bytes(content)


def verify_file(folder: Path, entry: FileEntry, head_bytes: int = 8) -> bytes:
    """Check a file's size and SHA-256, reading it as a stream; returns its first ``head_bytes`` bytes.

    Raises:
        BundleError: as :func:`open_inside`, or size or hash differ from the manifest's.
    """
    digest = sha256(to_come=entry.bytes)
    head = b""
    with open_inside(folder, entry.path) as file:
        _check_size(folder, entry, os.fstat(file.fileno()).st_size)
        buffer = bytearray(CHUNK_BYTES)
        view = memoryview(buffer)
        read_into: Callable[[memoryview], int] = file.readinto  # type: ignore[attr-defined]
        while count := read_into(view):
            digest.update(view[:count])
            if len(head) < head_bytes:
                head += bytes(view[: min(count, head_bytes - len(head))])
    _check_digest(folder, entry, digest.hexdigest())
    return head


def read_verified(folder: Path, entry: FileEntry, limit: int) -> bytes:
    """The content of a file, its size and SHA-256 checked on the very bytes returned.

    Raises:
        BundleError: as :func:`verify_file` and :func:`read_limited`.
    """
    content = read_limited(folder, entry.path, limit)
    _check_size(folder, entry, len(content))
    _check_digest(folder, entry, sha256(content).hexdigest())
    return content


def _check_size(folder: Path, entry: FileEntry, size: int) -> None:
    if size != entry.bytes:
        raise BundleError(
            f"{folder}: the file {entry.path!r} has {size:,} bytes where the manifest says {entry.bytes:,}; {REMEDY}"
        )


def _check_digest(folder: Path, entry: FileEntry, found: str) -> None:
    if found != entry.sha256:
        raise BundleError(
            f"{folder}: the content of {entry.path!r} was changed (SHA-256 {found[:12]}… where the manifest says "
            f"{entry.sha256[:12]}…); {REMEDY}"
        )
