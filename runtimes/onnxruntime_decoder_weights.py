"""A decoder's large constants in memory that this process maps itself, so that it may let go of their pages.

ONNX Runtime would map each constant of the data file by itself, unmap it once its packed copy is made, and keep the
pages of what it still needs: the scales, which it has packed too, and a table that is an output head as well. Nobody
else can tell which of these mappings are still there while it works. A mapping of our own is there as long as the
session, and what is let go of too early is only read anew, from the page cache.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from .protobuf_fields import entries, numbers, parts

SECONDS_BETWEEN = 0.01

_GRAPH, _INITIALIZER, _DIMENSIONS, _TYPE, _NAME, _PLACE = 7, 5, 1, 2, 8, 13
"""Numbers of fields: ModelProto's graph; its initializers; TensorProto's shape, type, name and place in a file."""

_TYPES: dict[int, type[np.generic]] = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64}


class MappedConstants:
    """The constants of an ``.onnx`` file that lie in its data file.

    Args:
        path: the ``.onnx`` file.
        data: the file of its large constants.

    Attributes:
        arrays: the constants by name, read-only, as the file has them.

    Raises:
        BundleError: a file cannot be read, or does not hold what the other says.
    """

    def __init__(self, path: Path, data: Path) -> None:
        self._values: list[Any] = []
        try:
            with data.open("rb") as file:
                # Nothing cannot be mapped, and is what a student of small constants alone has.
                size = file.seek(0, 2)
                self._mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else None
            content = np.frombuffer(self._mapped or b"", np.uint8)
            self.arrays = _arrays(path.read_bytes(), content, data.name)
        except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} or {data.name} is damaged: {error!r}; copy the bundle anew") from error
        except OSError as error:
            raise BundleError(f"{data} cannot be read: {error.strerror}; check the bundle's folder") from error

    def give_to(self, module: Any, options: Any) -> None:
        """Have the engine take the constants from here. This must be kept as long as its session."""
        for name, array in self.arrays.items():
            value = module.OrtValue.ortvalue_from_numpy(array)
            options.add_initializer(name, value)
            self._values.append(value)

    def release(self) -> None:
        """Let go of the pages that lie in memory, where the system can; what is read again comes back by itself."""
        if sys.platform == "linux" and self._mapped is not None:
            with contextlib.suppress(OSError, ValueError):
                self._mapped.madvise(mmap.MADV_DONTNEED)

    @contextlib.contextmanager
    def releasing(self) -> Iterator[None]:
        """Let go of pages again and again while something reads through them, and at the end."""
        over = threading.Event()

        def let_go() -> None:
            while not over.wait(SECONDS_BETWEEN):
                self.release()

        thread = threading.Thread(target=let_go, name="mapped constants", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.release()


def _arrays(model: bytes, content: NDArray[np.uint8], name: str) -> dict[str, NDArray[Any]]:
    """Each constant that lies in the file ``name``, whose bytes are ``content``."""
    found: dict[str, NDArray[Any]] = {}
    for graph in parts(memoryview(model), _GRAPH):
        for tensor in parts(graph, _INITIALIZER):
            place = entries(tensor, _PLACE)
            if place.get("location") != name:
                continue
            shape, dtype = numbers(tensor, _DIMENSIONS), np.dtype(_TYPES[numbers(tensor, _TYPE)[-1]])
            start, size = int(place["offset"]), int(place["length"])
            if start < 0 or size != math.prod(shape) * dtype.itemsize or start + size > len(content):
                raise ValueError(f"a constant of shape {shape} at {start}, in {len(content)} bytes")
            constant = content[start : start + size].view(dtype).reshape(shape)
            found[bytes(parts(tensor, _NAME)[-1]).decode()] = constant
    return found
