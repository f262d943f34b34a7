"""Two ways in which OpenVINO keeps a decoder's keys and values, each with the run that fills it.

- :class:`PagedCache`: the engine's transformation puts ``PagedAttention`` in place of attention over state variables.
  Keys and values stand in blocks of :data:`BLOCK` tokens in memory of ours, which never moves: forgetting tokens is
  counting fewer of them, and copies are exact. For x86-64: elsewhere the CPU plugin has no such kernel in general.
- :class:`GrowingCache`: the state variables that the file holds, in the engine's memory. Forgetting tokens cuts each of
  them by a copy, before the next run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError
from .openvino_decoder_file import DecoderFile

BLOCK = 32
"""Tokens of a block of the CPU plugin's PagedAttention."""

MOST_SPARE = 15
"""Rows that a run of :class:`PagedCache` may write behind the session's context."""

Arrays = dict[str, NDArray[np.generic]]


class DecoderCache(ABC):
    """The cache of one session, and its inference request."""

    can_be_alike: bool
    """Whether a token's logits can be the same bit for bit in a run of one and of several tokens."""

    def __init__(self, module: Any, compiled: Any, file: DecoderFile) -> None:
        self._module, self._file = module, file
        self._request: Any = compiled.create_infer_request()
        self._kept: list[Any] = []

    @abstractmethod
    def run(
        self,
        tokens: NDArray[np.int32],
        start: int,
        wanted: int,
        alike: bool,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Write ``tokens`` behind the first ``start``; the logits ``[wanted, V]`` of the last ones, a copy.

        ``alike``: one token gives the bits that it would give among others, where :attr:`can_be_alike`. ``out``:
        float32 ``[V]``, where one token's logits may be put instead.
        """

    @abstractmethod
    def read(self, length: int) -> Arrays:
        """Copies of keys and values, ``[K, length, D]`` each."""

    @abstractmethod
    def write(self, arrays: Arrays, length: int) -> None:
        """Put arrays of :meth:`read` in the cache.

        Raises:
            InputError: they are not of this artifact.
        """

    def free(self) -> None:
        """Let go of the memory."""
        self._request = None
        self._kept.clear()

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        tensor = self._module.Tensor(array, shared_memory=True)
        self._kept += [array, tensor]
        self._request.set_tensor(name, tensor)

    def _infer(self, asked: int) -> NDArray[np.float32]:
        """Run what is bound; the logits ``[asked, V]``, which are the engine's own memory."""
        try:
            # Shared: else all results would be copied once more.
            self._request.infer(share_outputs=True)
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or ["RuntimeError"]
            raise EngineError(f"OpenVINO failed while running: {lines[-1].strip()}") from error
        logits: NDArray[np.float32] = self._request.get_output_tensor(0).data[0]
        if len(logits) != asked:  # as OpenVINO 2026.4 does where ONEDNN_MAX_CPU_ISA hides what a processor has
            raise EngineError(
                f"OpenVINO ran and gave {len(logits)} rows of logits instead of {asked}: take another runtime"
            )
        return logits

    @staticmethod
    def _given(logits: NDArray[np.float32], wanted: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """The last ``wanted`` rows as an array of the caller's own, or the single one in ``out``."""
        if out is None or wanted != 1:
            return logits[len(logits) - wanted :].copy()
        out[:] = logits[-1]
        return out[None]

    def _check(self, arrays: Arrays, length: int, dtype: Any) -> None:
        names = {f"{layer}.{part}" for layer in range(self._file.layers) for part in ("key", "value")}
        if arrays.keys() != names:
            raise InputError("the saved cache is not of this artifact: it has other layers")
        shape = (self._file.cache_heads, length, self._file.cache_width)
        for name, array in arrays.items():
            if array.shape != shape or array.dtype != dtype:
                raise InputError(
                    f"the saved cache is not of this artifact: {name} is {array.dtype} {list(array.shape)} "
                    f"instead of {np.dtype(dtype)} {list(shape)}"
                )


class PagedCache(DecoderCache):
    """Blocks of keys and values in memory of ours.

    One token is attended for by another kernel than several, whose last bits differ. So where the logits of all tokens
    are wanted, each of them is run as a text of its own, one token long, whose blocks are those of all: the engine
    writes all keys and values before it attends. With fewer texts than threads it would divide each one's attention
    among them, with other last bits again: then texts of one spare token, in a block of their own, come on top.

    The engine keeps kernels for each number of rows, so that this is rounded up. What spare rows write is hidden from
    all tokens before them and written over by the next.
    """

    can_be_alike = True

    def __init__(self, module: Any, compiled: Any, file: DecoderFile, context: int, threads: int) -> None:
        super().__init__(module, compiled, file)
        self._threads = threads
        self._dtype: Any = np.float32 if file.cache_bits == 32 else np.float16
        count = -(-(context + MOST_SPARE) // BLOCK)
        self._last_place = context - 1
        shape = (count + 1, file.cache_heads, BLOCK, file.cache_width)
        self._blocks: dict[str, NDArray[Any]] = {}
        for layer in range(file.layers):
            for part in ("key", "value"):
                # Zeros that are not written yet take no memory, so a long context costs nothing before it is used.
                memory = self._blocks[f"{layer}.{part}"] = np.zeros(shape, self._dtype)
                self._bind(f"{part}_cache.{layer}", memory)
        self._count = count
        self._end = np.zeros((), np.int32)
        self._bind("max_context_len", self._end)
        self._of_texts: dict[tuple[int, int], tuple[NDArray[np.int32], NDArray[np.int32], dict[str, Any]]] = {}
        self._of_rows: dict[int, tuple[NDArray[np.int32], NDArray[np.int32], Any, Any]] = {}
        self._of_wanted: dict[int, tuple[NDArray[np.int32], Any]] = {}
        self._shape: tuple[int, int, int, int] | None = None  # of what is bound

    def run(
        self,
        tokens: NDArray[np.int32],
        start: int,
        wanted: int,
        alike: bool,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """See DecoderCache."""
        count = len(tokens)
        apart = alike and wanted == count
        rows, asked = max(rounded(count), self._threads if apart else 1), max(1, wanted)
        ids, places, ids_tensor, places_tensor = self._rows(rows)
        ids[:count], ids[count:] = tokens, 0
        places[:] = np.minimum(np.arange(start, start + rows), self._last_place)
        wanted_rows, wanted_tensor = self._wanted(asked)
        wanted_rows[:] = np.arange(count - asked, count)
        texts, spare = count if apart else 1, rows - count if apart else 0
        past, span, tensors = self._texts(texts, spare)
        past[:texts] = np.arange(start, start + texts)
        span[-1] = rows
        self._end[()] = start + rows
        if (rows, asked, texts, spare) != self._shape:
            self._shape = None
            for name, tensor in tensors.items():
                self._request.set_tensor(name, tensor)
            self._request.set_tensor("input_ids", ids_tensor)
            self._request.set_tensor("position_ids", places_tensor)
            self._request.set_tensor("wanted", wanted_tensor)
            self._shape = rows, asked, texts, spare
        return self._given(self._infer(asked), wanted, out)

    def _texts(self, texts: int, spare: int) -> tuple[NDArray[np.int32], NDArray[np.int32], dict[str, Any]]:
        """What tells the engine of so many texts, each of which has all blocks but the last, and of spare ones in that:
        the lengths before, where their tokens begin among those of the run, and the tensors."""
        if (texts, spare) not in self._of_texts:
            every, own = np.arange(self._count, dtype=np.int32), np.full(spare, self._count, np.int32)
            begins = np.cumsum([0, *[self._count] * texts, *[1] * spare], dtype=np.int32)
            arrays = {
                "past_lens": np.zeros(texts + spare, np.int32),
                "subsequence_begins": np.arange(texts + spare + 1, dtype=np.int32),
                "block_indices_begins": begins,
                "block_indices": np.concatenate([*[every] * texts, own]),
            }
            self._kept += arrays.values()
            tensors = {name: self._module.Tensor(array, shared_memory=True) for name, array in arrays.items()}
            self._of_texts[texts, spare] = arrays["past_lens"], arrays["subsequence_begins"], tensors
        return self._of_texts[texts, spare]

    def _rows(self, rows: int) -> tuple[NDArray[np.int32], NDArray[np.int32], Any, Any]:
        if rows not in self._of_rows:
            ids, places = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
            tensors = (self._module.Tensor(each, shared_memory=True) for each in (ids, places))
            self._of_rows[rows] = ids, places, *tensors
        return self._of_rows[rows]

    def _wanted(self, count: int) -> tuple[NDArray[np.int32], Any]:
        if count not in self._of_wanted:
            array = np.zeros(count, np.int32)
            self._of_wanted[count] = array, self._module.Tensor(array, shared_memory=True)
        return self._of_wanted[count]

    def read(self, length: int) -> Arrays:
        """See DecoderCache."""
        used = -(-length // BLOCK)
        found: Arrays = {}
        for name, blocks in self._blocks.items():
            heads_first = blocks[:used].swapaxes(0, 1)
            found[name] = heads_first.reshape(blocks.shape[1], used * BLOCK, -1)[:, :length].copy()
        return found

    def write(self, arrays: Arrays, length: int) -> None:
        """See DecoderCache."""
        self._check(arrays, length, self._dtype)
        used = -(-length // BLOCK)
        for name, array in arrays.items():
            filled = np.pad(array, ((0, 0), (0, used * BLOCK - length), (0, 0)))
            self._blocks[name][:used] = filled.reshape(len(filled), used, BLOCK, -1).swapaxes(0, 1)

    def free(self) -> None:
        """See DecoderCache."""
        super().free()
        self._blocks.clear()
        self._of_rows.clear()
        self._of_wanted.clear()
        self._of_texts.clear()


class GrowingCache(DecoderCache):
    """State variables of the engine, ``past.<layer>.<part>`` float32 ``[1, K, length, D]`` as seen from outside."""

    can_be_alike = False

    def __init__(self, module: Any, compiled: Any, file: DecoderFile) -> None:
        super().__init__(module, compiled, file)
        self._held = 0
        self._bind("beam_idx", np.zeros(1, np.int32))

    def run(
        self,
        tokens: NDArray[np.int32],
        start: int,
        wanted: int,
        alike: bool,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """See DecoderCache."""
        if self._held != start:
            self._keep(start)
        count, asked = len(tokens), max(1, wanted)
        tensor, request = self._module.Tensor, self._request
        request.set_tensor("input_ids", tensor(tokens[None]))
        request.set_tensor("position_ids", tensor(np.arange(start, start + count, dtype=np.int32)[None]))
        request.set_tensor("wanted", tensor(np.arange(count - asked, count, dtype=np.int32)))
        self._held = -1  # until the run has ended well, the variables may hold anything
        logits = self._given(self._infer(asked), wanted, out)
        self._held = start + count
        return logits

    def _keep(self, length: int) -> None:
        """Forget what stands behind ``length``."""
        if not length:
            self._request.reset_state()
        else:
            for state in self._request.query_state():
                state.state = self._module.Tensor(np.ascontiguousarray(state.state.data[:, :, :length]))
        self._held = length

    def read(self, length: int) -> Arrays:
        """See DecoderCache."""
        states = {state.name.removeprefix("past."): state for state in self._request.query_state()}
        empty = np.zeros((self._file.cache_heads, 0, self._file.cache_width), np.float32)
        return {name: state.state.data[0, :, :length].copy() if length else empty for name, state in states.items()}

    def write(self, arrays: Arrays, length: int) -> None:
        """See DecoderCache."""
        self._check(arrays, length, np.float32)
        self._request.reset_state()
        if length:
            for state in self._request.query_state():
                name = state.name.removeprefix("past.")
                state.state = self._module.Tensor(np.ascontiguousarray(arrays[name][None]))
        self._held = length


def rounded(count: int) -> int:
    """Rows that ``count`` tokens are run as: 1, 2, 3, 4, 6, 8, 12, or a multiple of 16."""
    for size in (1, 2, 3, 4, 6, 8, 12):
        if count <= size:
            return size
    return -(-count // 16) * 16
