"""KV caches of prompts' beginnings (system prompts), kept in a folder so that a fresh process need not compute them.

One file for each beginning. It is written whole or not at all, and its content is checked against a hash when it is
read; a file that is damaged, or of another artifact, is never used. Where the folder cannot be written nothing is kept,
and that is no error: the cache only saves time.

A file: ``MAGIC``, the length of the header (uint32, little endian), the header (JSON: the tokens, and the arrays'
names, dtypes and shapes), the arrays one after the other, and the SHA-256 of all that in hexadecimal.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtimes.decoder_contract import CacheState
from .sha256 import sha256

MAGIC = b"edgescribe kv 1\n"
_DIGEST_BYTES = 64
SUFFIX = ".kv"
LIMIT_BYTES = 256 << 20
_LONGEST_HEADER = 1 << 20
_STALE_SECONDS = 3600.0


class _Array(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    identity: str
    tokens: list[int]
    arrays: list[_Array]


class _DamagedError(Exception):
    """A file is not what was written."""


class PrefixCache:
    """A folder of KV caches of one artifact on one engine. May be used from several threads and processes at once.

    Args:
        folder: where they are kept; made when first needed. Other files in it are left alone.
        identity: what the numbers depend on besides the tokens: the artifact's hashes, runtime, engine version, ….
        limit_bytes: the most that all files together may take; those used longest ago go first. Those of other
            identities in the folder count and go as well.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Iterable[str], limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder, self._limit = Path(folder), limit_bytes
        self._identity = sha256("\n".join(identity).encode()).hexdigest()
        self._lock = threading.Lock()

    def find(self, tokens: Sequence[int], lengths: Sequence[int]) -> CacheState | None:
        """The cache of the longest kept beginning of ``tokens`` that is one of ``lengths`` long, or None."""
        row = np.asarray(tokens, np.int32)
        for length in sorted({length for length in lengths if 0 < length <= len(row)}, reverse=True):
            path = self._path(row[:length])
            try:
                state = self._read(path, row[:length])
            except FileNotFoundError:
                continue
            except OSError:
                continue
            except _DamagedError:
                with suppress(OSError):
                    path.unlink()
                continue
            with suppress(OSError):  # last use, for the order of removal
                os.utime(path)
            return state
        return None

    def keep(self, state: CacheState) -> None:
        """Keep a cache, and remove others where there are too many. Does nothing where that is impossible."""
        size = sum(array.nbytes for array in state.arrays.values())
        if not len(state.tokens) or size + _LONGEST_HEADER > self._limit:
            return
        with self._lock, suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size + _LONGEST_HEADER)
            self._write(state)

    def _path(self, tokens: NDArray[np.int32]) -> Path:
        digest = sha256(self._identity.encode())
        digest.update(tokens.astype("<i4").tobytes())
        return self._folder / f"{digest.hexdigest()}{SUFFIX}"

    def _write(self, state: CacheState) -> None:
        arrays = {name: np.ascontiguousarray(array) for name, array in state.arrays.items()}
        header = msgspec.json.encode(
            _Header(
                identity=self._identity,
                tokens=state.tokens.tolist(),
                arrays=[_Array(name, array.dtype.str, array.shape) for name, array in arrays.items()],
            )
        )
        descriptor, name = tempfile.mkstemp(prefix="kv-", suffix=".part", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                head = MAGIC + struct.pack("<I", len(header)) + header
                digest = sha256(head)
                file.write(head)
                for array in arrays.values():
                    digest.update(_bytes_of(array))
                    file.write(_bytes_of(array))
                file.write(digest.hexdigest().encode())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path(state.tokens))
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise

    def _read(self, path: Path, tokens: NDArray[np.int32]) -> CacheState:
        """A file's cache.

        Raises:
            OSError: it cannot be read.
            _DamagedError: it is not what was written for these tokens.
        """
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            start = len(MAGIC) + 4
            head = file.read(start)
            if size > self._limit or len(head) < start or not head.startswith(MAGIC):
                raise _DamagedError
            (length,) = struct.unpack("<I", head[-4:])
            left = size - start - length - _DIGEST_BYTES
            if length > _LONGEST_HEADER or left < 0:
                raise _DamagedError
            content = file.read(length)
            digest = sha256(head + content)
            try:
                header = msgspec.json.decode(content, type=_Header)
                kinds = [np.dtype(array.dtype) for array in header.arrays]
            except (msgspec.MsgspecError, TypeError, ValueError):
                raise _DamagedError from None
            if header.identity != self._identity or header.tokens != tokens.tolist():
                raise _DamagedError
            arrays: dict[str, NDArray[np.generic]] = {}
            for array, kind in zip(header.arrays, kinds, strict=True):
                taken = math.prod(array.shape) * kind.itemsize if min(array.shape, default=0) >= 0 else -1
                if kind.hasobject or not kind.itemsize or not 0 <= taken <= left:
                    raise _DamagedError
                found = np.empty(taken, np.uint8)
                filled = 0
                while filled < taken and (count := file.readinto(found.data[filled:])):
                    filled += count
                if filled < taken:
                    raise _DamagedError
                digest.update(found.data)
                arrays[array.name] = found.view(kind).reshape(array.shape)
                left -= taken
            written = file.read(_DIGEST_BYTES)
        if left or digest.hexdigest().encode() != written:
            raise _DamagedError
        return CacheState(tokens.copy(), arrays)

    def _make_room(self, size: int) -> None:
        """Remove files until ``size`` more bytes fit, and what interrupted writers left behind."""
        found = []
        for path in self._folder.iterdir():
            with suppress(OSError):
                status = path.stat()
                if path.name.startswith("kv-") and path.name.endswith(".part"):
                    if time.time() - status.st_mtime > _STALE_SECONDS:
                        path.unlink()
                elif path.suffix == SUFFIX:
                    found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(each[1] for each in found)
        for _, taken, path in sorted(found):
            if used + size <= self._limit:
                return
            with suppress(OSError):
                path.unlink()
                used -= taken


def _bytes_of(array: NDArray[np.generic]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
