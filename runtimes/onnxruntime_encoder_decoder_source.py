"""A source text that ONNX Runtime has read: keys and values for each of the target's layers, shared among forks."""

from __future__ import annotations

import mmap
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .onnxruntime_decoder_binding import SharedWeights, first_line
from .onnxruntime_decoder_pages import MappedPages
from .onnxruntime_encoder_decoder_file import EncoderDecoderFile
from .spare_memory import release_freed

RELEASED_EVERY = 0.02
"""Seconds between two times that weights which were read are let go of, while a source is read."""


class ReadSource:
    """Memory for one source of up to ``context`` tokens, and the number of sessions that use it.

    Attributes:
        values: the engine's tensors over that memory, by the name of the graphs' outputs and inputs.
    """

    def __init__(self, file: EncoderDecoderFile, context: int) -> None:
        self._heads, self._width, self._hidden = file.source_heads, file.source_width, file.target.hidden
        numbers = context * self._heads * self._width
        names = [f"source.{layer}.{part}" for layer in range(file.target.layers) for part in ("key", "value")]
        # Memory that is never written is never taken: a short source takes little of it.
        kind = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._pages = mmap.mmap(-1, 4 * numbers * len(names), **kind)
        whole = np.frombuffer(self._pages, np.float32).reshape(len(names), numbers)
        self._memory = dict(zip(names, whole, strict=True))
        self.values: dict[str, Any] = {}
        self._users, self._lock = 1, threading.Lock()

    def enter(self) -> None:
        """Count one user more."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Count one user less."""
        with self._lock:
            self._users -= 1

    @property
    def is_shared(self) -> bool:
        """Whether several sessions use it, so that it must stay as it is."""
        with self._lock:
            return self._users > 1

    def read(self, tokens: NDArray[np.int32], weights: SharedWeights, pages: MappedPages) -> None:
        """Have the engine read ``tokens`` ``[S]`` and leave keys and values ``[1, H, S, D]`` in this memory.

        What that took beside is given back: the engine's scratch memory, and the ``pages`` of weights that are mapped,
        since writing the target needs none of them.

        Raises:
            EngineError: the engine failed.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            # The source before would lie in memory beside what reading takes.
            self._pages.madvise(mmap.MADV_DONTNEED)
        make = weights.module.OrtValue.ortvalue_from_numpy
        count, (reader, keeper) = len(tokens), weights.readers
        states = make(np.empty((1, count, self._hidden), np.float32))
        with pages.releasing(RELEASED_EVERY):
            _run(weights, reader, {"input_ids": make(tokens[None])}, {"states": states})
            shape, numbers = (1, self._heads, count, self._width), self._heads * count * self._width
            self.values = {name: make(memory[:numbers].reshape(shape)) for name, memory in self._memory.items()}
            _run(weights, keeper, {"states": states}, self.values)


def _run(weights: SharedWeights, session: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    binding, options = session.io_binding(), weights.module.RunOptions()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    # Scores grow with the square of the source: the engine would keep what its longest one took.
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:  # the engine's classes share no root of their own
        raise EngineError(f"ONNX Runtime failed while reading the source: {first_line(error)}") from error
    release_freed()
