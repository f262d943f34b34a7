"""Interpreters for the buckets of a ``.tflite`` file, with no more packed weights in memory than are used.

An interpreter packs the weights of every signature of its file when it first runs any of them, so a file with
four buckets would hold its weights five times. Most apps stay within a bucket or two. So the first two buckets
asked for each get an interpreter on a copy of the file in which theirs is the only signature (in memory, not
on disk); when a third one is asked for, one interpreter on the file itself takes over for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine_messages import without_info_lines
from .tflite_file import TfliteSignature

MOST_SINGLES = 2

Runner = Callable[..., dict[str, NDArray[np.float32]]]


class BucketInterpreters:
    """Runs the signature of a bucket; not for several threads at once.

    Args:
        make: the engine's class, called with ``model_path`` and ``num_threads``.
        path: the ``.tflite`` file.
        signatures: name and description of each bucket's signature.
        threads: threads of each interpreter.
    """

    def __init__(
        self, make: Callable[..., Any], path: Path, signatures: Mapping[int, tuple[str, TfliteSignature]], threads: int
    ) -> None:
        self._make, self._path, self._signatures, self._threads = make, path, signatures, threads
        self._runners: dict[int, Runner] = {}
        self._whole = False
        self._most_singles = MOST_SINGLES
        self._left_over = False
        self.provider = ""  # read back from the engine in the first run

    def prepare(self, bucket: int) -> None:
        """Have an interpreter ready for the bucket.

        Raises:
            RuntimeError, ValueError: the engine's own, as the Python packages of LiteRT raise them.
        """
        if self._left_over and bucket not in self._runners:
            self.close()
        self._left_over = False
        if bucket in self._runners:
            return
        with without_info_lines():
            interpreter = self._open(bucket)
            # The engine packs weights and announces it in the first run, not when it opens the file.
            _, signature = self._signatures[bucket]
            self._runners[bucket](**{name: np.ones((1, bucket), np.int32) for name in signature.inputs})
        self.provider = _provider(interpreter)

    def run(self, bucket: int, feeds: Mapping[str, NDArray[np.int32]]) -> dict[str, NDArray[np.float32]]:
        """Run a prepared bucket's signature on feeds of its very shapes; the outputs are copies.

        Raises:
            RuntimeError, ValueError: the engine's own, as the Python packages of LiteRT raise them.
        """
        return self._runners[bucket](**feeds)

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Keep a single interpreter meanwhile, for checks that go through buckets which may never be used.

        The one that is left over afterwards stays only if the next run is of its bucket.
        """
        self._most_singles, before = 1, self._most_singles
        try:
            yield
        finally:
            self._most_singles, self._left_over = before, True

    def close(self) -> None:
        """Let go of the interpreters."""
        self._runners.clear()
        self._whole = False

    def _open(self, bucket: int) -> Any:
        """Make a runner for the bucket; returns its interpreter."""
        name, signature = self._signatures[bucket]
        if not self._whole and self._most_singles == 1:
            self._runners.clear()
        if not self._whole and len(self._runners) < min(self._most_singles, len(self._signatures)):
            interpreter = self._single(signature)
            if interpreter is not None:
                self._runners[bucket] = interpreter.get_signature_runner(name)
                return interpreter
        self._runners.clear()
        self._whole = True
        interpreter = self._make(model_path=str(self._path), num_threads=self._threads)
        for size, (key, _) in self._signatures.items():
            self._runners[size] = interpreter.get_signature_runner(key)
        return interpreter

    def _single(self, signature: TfliteSignature) -> Any | None:
        """An interpreter on a copy that holds this signature alone, or None where no file can be had in memory."""
        try:
            copy = os.memfd_create("litert", os.MFD_CLOEXEC)
        except (AttributeError, OSError):
            return None
        try:
            with self._path.open("rb") as file:
                while os.sendfile(copy, file.fileno(), None, 1 << 20):
                    pass
            for place, content in signature.alone:
                os.pwrite(copy, content, place)
            in_memory = Path(f"/proc/self/fd/{copy}")
            if not in_memory.exists():
                return None
            return self._make(model_path=str(in_memory), num_threads=self._threads)
        except OSError:
            return None
        finally:
            os.close(copy)


def _provider(interpreter: Any) -> str:
    """What runs the (first) signature's operators: XNNPACK, as a delegate, or the engine's own kernels."""
    operators = interpreter._get_ops_details()
    return "XNNPACK" if any("DELEGATE" in operator["op_name"].upper() for operator in operators) else "builtin"
