"""One KV cache bound to an engine's session: a block of memory that never moves, and everything else a run reads.

Each layer's keys and values are bound as the graph's input and output at once: the engine writes new tokens where
they belong. All other inputs and the logits are bound too, so that a step costs Python a few microseconds.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError
from .checked_decoder import CheckedDecoder
from .onnxruntime_decoder_file import DecoderFile
from .onnxruntime_decoder_weights import MappedConstants

CHUNK = 128
"""Tokens of one run of prefill."""

MOST_VERIFIED = 16

FLOAT_BYTES = 4
SPARE = 1
"""Rows that a step of one token has attention compute beside its own: see the exporter's graph, input ``spare``."""

TRIED_TOKENS = 7


class SharedWeights:
    """Engine's sessions with the number of decoder sessions that use them; freed with the last.

    Attributes:
        session: what writes.
        readers: what reads an encoder-decoder's source, one behind the other; none for a decoder.
        constants: what the sessions read from memory of ours, if they do.
        alike: whether a step gives the bits of a verification on this machine; None while nobody asked.
    """

    def __init__(
        self,
        module: Any,
        session: Any,
        readers: tuple[Any, ...] = (),
        constants: MappedConstants | None = None,
    ) -> None:
        self.module, self.session, self.readers, self.constants = module, session, readers, constants
        self.alike: bool | None = None
        self._users, self._lock = 0, threading.Lock()

    def enter(self) -> None:
        """Count one user more."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Count one user less."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self.session, self.readers = None, ()
                self.constants = None


class DecoderBinding:
    """The memory of one session, bound to the graph of ``weights``.

    Args:
        context: the most tokens of its cache.
    """

    def __init__(self, weights: SharedWeights, file: DecoderFile, context: int) -> None:
        self._weights, self._file = weights, file
        weights.enter()
        self._value = weights.module.OrtValue.ortvalue_from_numpy
        self._binding: Any = weights.session.io_binding()
        # Memory that is never written is never taken, so a long context costs nothing before it is used.
        shape = (1, file.cache_heads, context + SPARE, file.cache_width)
        self._number: type[np.float32 | np.int8] = np.float32 if file.cache_bytes == FLOAT_BYTES else np.int8
        self._cache: dict[str, NDArray[Any]] = {}
        self._bound: dict[str, Any] = {}
        for layer in range(file.layers):
            for part in ("key", "value"):
                memory = self._cache[f"{layer}.{part}"] = np.empty(shape, self._number)
                value = self.bind_input(f"past.{layer}.{part}", self._value(memory))
                self._binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
        self._ids = np.zeros((1, CHUNK), np.int32)
        self._first, self._last, self._total = np.zeros((), np.int32), np.zeros(1, np.int32), np.zeros((), np.int32)
        self._wanted_from, self._spare = np.zeros(1, np.int64), np.zeros(6, np.int64)
        self._logits = np.empty((1, MOST_VERIFIED, file.vocabulary), np.float32)
        self.bind_input("first", self._value(self._first))
        self.bind_input("last", self._value(self._last))
        self.bind_input("total", self._value(self._total))
        self.bind_input("wanted_from", self._value(self._wanted_from))
        if self._number is np.float32:
            self.bind_input("spare", self._value(self._spare))
        self._ids_of: dict[int, Any] = {}
        self._logits_of: dict[int, Any] = {}
        self._bound_tokens = self._bound_rows = 0

    def bind_input(self, name: str, value: Any) -> Any:
        """Have runs read the engine's ``value``, which is kept as long as it is bound, as the input ``name``."""
        self._binding.bind_ortvalue_input(name, value)
        self._bound[name] = value
        return value

    def run(
        self,
        tokens: NDArray[np.int32],
        length: int,
        wanted: int,
        spare: bool,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Put tokens behind ``length`` cached ones; logits of the last ``wanted``, ``[wanted, V]``, in an own array.

        ``spare``: have attention compute a row beside a single token's. ``out``: float32 ``[V]``, where one token's
        logits are put instead.

        Raises:
            EngineError: the engine failed.
        """
        count, rows = len(tokens), max(1, wanted)
        self._ids[0, :count] = tokens
        more = SPARE if spare and count == 1 and self._number is np.float32 else 0
        total = length + count + more
        self._first[()] = length
        self._last[0] = total - 1
        self._total[()] = total
        self._spare[4] = more
        self._wanted_from[0] = count - rows
        if count != self._bound_tokens:
            if count not in self._ids_of:
                self._ids_of[count] = self._value(self._ids[:, :count])
            self._binding.bind_ortvalue_input("input_ids", self._ids_of[count])
            self._bound_tokens = count
        if rows != self._bound_rows:
            if rows not in self._logits_of:
                self._logits_of[rows] = self._value(self._logits[:, :rows])
            self._binding.bind_ortvalue_output("logits", self._logits_of[rows])
            self._bound_rows = rows
        try:
            self._weights.session.run_with_iobinding(self._binding)
        except Exception as error:  # the engine's classes share no root of their own
            raise EngineError(f"ONNX Runtime failed while running: {first_line(error)}") from error
        logits = self._logits[0, rows - wanted : rows]
        if out is None:
            return logits.copy()
        out[:] = logits[0]
        return out[None]

    def read_cache(self, length: int) -> dict[str, NDArray[np.generic]]:
        """Copies of the cache's first ``length`` tokens: ``[K, length, D]`` by name."""
        return {name: memory[0, :, :length].copy() for name, memory in self._cache.items()}

    def write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        """Put what :meth:`read_cache` gave back.

        Raises:
            InputError: it is not of this artifact.
        """
        shape = (self._file.cache_heads, length, self._file.cache_width)
        if arrays.keys() != self._cache.keys():
            raise InputError("the saved cache is not of this artifact: it has other layers")
        for name, array in arrays.items():
            if array.shape != shape or array.dtype != self._number:
                raise InputError(
                    f"the saved cache is not of this artifact: {name} is {array.dtype} {list(array.shape)} "
                    f"instead of {np.dtype(self._number)} {list(shape)}"
                )
        for name, array in arrays.items():
            self._cache[name][0, :, :length] = array

    def copy_cache(self, other: DecoderBinding, length: int) -> None:
        """Copy the first ``length`` tokens of another session of the same artifact."""
        for name, memory in self._cache.items():
            memory[:, :, :length] = other._cache[name][:, :, :length]

    def free(self) -> None:
        """Let go of all memory, and of the weights."""
        self._binding = None
        for held in (self._bound, self._ids_of, self._logits_of, self._cache):
            held.clear()
        self._logits = np.empty((1, 0, 0), np.float32)
        self._weights.leave()


def steps_like_verifications(trial: CheckedDecoder) -> bool:
    """Whether a token among others and the same one alone get equal logits, by a few short runs of ``trial``."""
    most = min(TRIED_TOKENS, trial.context)
    tokens = np.arange(most, dtype=np.int32) % trial.vocabulary
    whole = trial.verify(tokens)
    for count in range(1, min(4, most)):
        trial.rewind(most - count)
        if not np.array_equal(trial.verify(tokens[-count:]), whole[-count:]):
            return False
    return True


def first_line(error: Exception) -> str:
    """The first line of an engine's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
