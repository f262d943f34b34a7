"""The contents of a GGUF file (versions 2 and 3, little-endian): its metadata, and its tensors dequantised.

Every length in the file is held against the file's size before it is believed. The format is described in ggml's
``docs/gguf.md``; the arithmetic of its quantised blocks is that of the package ``gguf``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StudentError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of metadata by number, as ``struct`` calls them; 8 is text and 9 an array."""

TEXT, ARRAY = 8, 9
MOST_DIMENSIONS = 4


class _DamagedError(Exception):
    """The file is not what its lengths say."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its shape outermost axis first, its type in ggml's numbers, and its place in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int


class GgufContents:
    """A GGUF file, mapped into memory.

    Attributes:
        metadata: values by key; arrays as lists.

    Raises:
        StudentError: the file is damaged, of another version or of the other byte order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self._tensors: dict[str, StoredTensor] = {}
        try:
            self._bytes = np.memmap(path, np.uint8, mode="r")
            self._buffer = self._bytes.data
            self._read()
        except (_DamagedError, ValueError) as error:
            raise StudentError(f"{path} is not a GGUF file that can be read: {error}. Download it again") from error

    def names(self) -> list[str]:
        """The tensors' names in the order of the file."""
        return list(self._tensors)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32, outermost axis first; one stored so is a view of the file and cannot be written to.

        Raises:
            StudentError: it is stored in a type that cannot be read, or the file ends before it does.
        """
        import gguf

        stored = self._tensors[name]
        try:
            kind = gguf.GGMLQuantizationType(stored.kind)
            block, size = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise StudentError(f"{self.path}: {name} is stored in the unknown type {stored.kind}") from error
        count = math.prod(stored.shape)
        end = stored.begin + count // block * size
        if stored.shape[-1] % block or end > len(self._bytes):
            raise StudentError(f"{self.path} ends before {name} does; download it again")
        raw = self._bytes[stored.begin : end].view(np.ndarray)
        if kind == gguf.GGMLQuantizationType.F32:
            return np.frombuffer(raw, np.float32).reshape(stored.shape)
        rows = raw.reshape(*stored.shape[:-1], stored.shape[-1] // block * size)
        if kind == gguf.GGMLQuantizationType.F16:
            rows = rows.view(np.float16)
        try:
            values: NDArray[np.float32] = gguf.dequantize(rows, kind).astype(np.float32, copy=False)
        except (RuntimeError, ValueError) as error:
            raise StudentError(f"{self.path}: {name} is stored as {kind.name}, which cannot be read") from error
        return values.reshape(stored.shape)

    # Reading the head
    def _read(self) -> None:
        self._at = 0
        if bytes(self._take(4)) != MAGIC:
            raise _DamagedError("it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            raise _DamagedError(f"it is of version {version}, and 2 and 3 are read (little-endian)")
        tensors, pairs = self._number("Q"), self._number("Q")
        for _ in range(self._believed(pairs, 12)):
            key = self._text()
            self.metadata[key] = self._value(self._number("I"))
        described = [self._description() for _ in range(self._believed(tensors, 24))]
        alignment = self.metadata.get(ALIGNMENT, 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise _DamagedError(f"its tensors are aligned to {alignment!r} bytes")
        start = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in described:
            if name in self._tensors:
                raise _DamagedError(f"it holds {name} twice")
            self._tensors[name] = StoredTensor(name, shape, kind, start + offset)

    def _description(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(), self._number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise _DamagedError(f"its tensor {name!r} has {dimensions} axes")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        if not 0 < math.prod(shape) <= 64 * len(self._bytes):
            raise _DamagedError(f"its tensor {name!r} is of the shape {shape}")
        return name, shape, self._number("I"), self._number("Q")

    def _take(self, size: int) -> memoryview:
        begin = self._at
        if size > len(self._buffer) - begin:
            raise _DamagedError("it ends in the middle")
        self._at = begin + size
        return self._buffer[begin : self._at]

    def _believed(self, count: int, size: int) -> int:
        """``count``, if that many things of at least ``size`` bytes can follow."""
        if count * size > len(self._buffer) - self._at:
            raise _DamagedError(f"it ends before the {count} entries do that it tells of")
        return count

    def _number(self, kind: str) -> Any:
        (value,) = struct.unpack("<" + kind, self._take(struct.calcsize(kind)))
        return value

    def _text(self) -> str:
        return str(self._take(self._number("Q")), "utf-8")

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text()
        if kind == ARRAY:
            inner, count = self._number("I"), self._number("Q")
            if inner == TEXT:
                return [self._text() for _ in range(self._believed(count, 8))]
            letter = SCALARS.get(inner)
            if letter is None:
                raise _DamagedError(f"it holds an array of the unknown type {inner}")
            size = struct.calcsize(letter)
            return list(struct.unpack(f"<{count}{letter}", self._take(self._believed(count, size) * size)))
        if kind not in SCALARS:
            raise _DamagedError(f"it holds a value of the unknown type {kind}")
        return self._number(SCALARS[kind])
