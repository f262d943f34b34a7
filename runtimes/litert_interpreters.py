"""The interpreter for the buckets of a ``.tflite`` file, with no more packed weights in memory than are used.

An interpreter packs the weights of every signature of its file when it first runs any of them: a file with four
buckets would hold its weights five times. Most apps stay within a bucket or two. So the interpreter runs a copy of
the file (in memory, not on disk) that is left with the signatures of the buckets asked for so far; with each new
bucket a new copy and a new interpreter take over, until it is the file itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine_messages import without_info_lines
from .tflite_file import TfliteSignature, with_only

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
        self._single = False
        self._left_over = False
        self.provider = ""  # read back from the engine in the first run

    def prepare(self, bucket: int) -> None:
        """Have the interpreter ready for the bucket.

        Raises:
            RuntimeError, ValueError: the engine's own, as the Python packages of LiteRT raise them.
        """
        if bucket not in self._runners:
            kept = [bucket] if self._single or self._left_over else sorted({*self._runners, bucket})
            self._runners.clear()  # before the next one takes memory
            with without_info_lines():
                interpreter = self._open(kept)
                runners = {size: interpreter.get_signature_runner(self._signatures[size][0]) for size in kept}
                # The engine packs weights and announces it in the first run, not when it opens the file.
                _, signature = self._signatures[bucket]
                runners[bucket](**{name: np.ones((1, bucket), np.int32) for name in signature.inputs})
            self._runners = runners
            self.provider = self.provider or _provider(interpreter)
        self._left_over = False

    def run(self, bucket: int, feeds: Mapping[str, NDArray[np.int32]]) -> dict[str, NDArray[np.float32]]:
        """Run a prepared bucket's signature on feeds of its very shapes; the outputs are copies.

        Raises:
            RuntimeError, ValueError: the engine's own, as the Python packages of LiteRT raise them.
        """
        return self._runners[bucket](**feeds)

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Keep a single bucket meanwhile, for checks that go through buckets which may never be used.

        The one that is left over afterwards stays only if the next run is of its bucket.
        """
        self._single = True
        try:
            yield
        finally:
            self._single, self._left_over = False, True

    def close(self) -> None:
        """Let go of the interpreter."""
        self._runners.clear()

    def _open(self, buckets: Sequence[int]) -> Any:
        """An interpreter whose file has these buckets; all of them where no file can be had in memory."""
        if len(buckets) < len(self._signatures):
            copy = self._copy(buckets)
            if copy is not None:
                try:
                    in_memory = Path(f"/proc/self/fd/{copy}")
                    if in_memory.exists():
                        return self._make(model_path=str(in_memory), num_threads=self._threads)
                finally:
                    os.close(copy)
        return self._make(model_path=str(self._path), num_threads=self._threads)

    def _copy(self, buckets: Sequence[int]) -> int | None:
        """The file with the signatures of these buckets only, in memory, or None where that cannot be had."""
        try:
            copy = os.memfd_create("litert", os.MFD_CLOEXEC)
        except (AttributeError, OSError):
            return None
        try:
            with self._path.open("rb") as file:
                while os.sendfile(copy, file.fileno(), None, 1 << 20):
                    pass
            for place, content in with_only(self._signatures[bucket][1] for bucket in buckets):
                os.pwrite(copy, content, place)
        except OSError:
            os.close(copy)
            return None
        return copy


def _provider(interpreter: Any) -> str:
    """What runs the (first) signature's operators: XNNPACK, as a delegate, or the engine's own kernels."""
    operators = interpreter._get_ops_details()
    return "XNNPACK" if any("DELEGATE" in operator["op_name"].upper() for operator in operators) else "builtin"
