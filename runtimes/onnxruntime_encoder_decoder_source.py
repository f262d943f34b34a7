"""A source text that ONNX Runtime has read: keys and values for each of the target's layers, shared among forks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .onnxruntime_decoder_binding import SharedWeights, first_line
from .onnxruntime_decoder_file import data_file
from .onnxruntime_decoder_pages import release_read_pages
from .onnxruntime_encoder_decoder_file import EncoderDecoderFile
from .spare_memory import release_freed


class ReadSource:
    """Memory for one source of up to ``context`` tokens, and the number of sessions that use it.

    Attributes:
        values: the engine's tensors over that memory, by the name of the graphs' outputs and inputs.
    """

    def __init__(self, file: EncoderDecoderFile, context: int) -> None:
        self._heads, self._width = file.source_heads, file.source_width
        # Memory that is never written is never taken: a short source takes little of it.
        numbers = context * self._heads * self._width
        names = [f"source.{layer}.{part}" for layer in range(file.target.layers) for part in ("key", "value")]
        self._memory = {name: np.empty(numbers, np.float32) for name in names}
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

    def read(self, tokens: NDArray[np.int32], weights: SharedWeights) -> None:
        """Have the engine read ``tokens`` ``[S]`` and leave keys and values ``[1, H, S, D]`` in this memory.

        Raises:
            EngineError: the engine failed.
        """
        make = weights.module.OrtValue.ortvalue_from_numpy
        shape = (1, self._heads, len(tokens), self._width)
        numbers = self._heads * len(tokens) * self._width
        self.values = {name: make(memory[:numbers].reshape(shape)) for name, memory in self._memory.items()}
        binding = weights.reader.io_binding()
        ids = make(tokens[None])
        binding.bind_ortvalue_input("input_ids", ids)
        for name, value in self.values.items():
            binding.bind_ortvalue_output(name, value)
        options = weights.module.RunOptions()
        # Scores grow with the square of the source: the engine would keep what its longest one took.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            weights.reader.run_with_iobinding(binding, options)
        except Exception as error:  # the engine's classes share no root of their own
            raise EngineError(f"ONNX Runtime failed while reading the source: {first_line(error)}") from error


def let_go_of_reader(artifact: Path, file: EncoderDecoderFile) -> None:
    """Give back what reading took: freed memory, and weights that are mapped; writing the target needs none of it."""
    if not file.source_is_packed:
        release_read_pages(data_file(artifact))
    release_freed()
