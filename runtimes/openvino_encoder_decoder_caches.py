"""What a session of an encoder-decoder in OpenVINO holds: the source that was read, and the target's cache."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .openvino_decoder_caches import GrowingCache
from .openvino_encoder_decoder_file import EncoderDecoderFile

# The engine makes kernels for each size that it meets and keeps a thousand of them, of some 0.4 MB each: numbers of
# rows and places are rounded up to few.
ROWS = 64
"""A source is padded to a multiple of so many tokens, or of a quarter of the power of two above."""

PLACES = 256
"""It is kept in so many places, or in the power of two above."""

RUN_ROWS = (4, 8, 16)
"""Rows that several tokens of a target are run as; of more, a multiple of the last."""


class Source:
    """Keys and values of one source for every layer of the decoder, in the memory of a request of the encoder.

    Forks share one, from several threads. ``most``: tokens of the longest source.
    """

    def __init__(self, module: Any, compiled: Any, most: int) -> None:
        self._module, self._most = module, most
        self._request: Any = compiled.create_infer_request()
        self._sessions = 1
        self._lock = threading.Lock()

    @property
    def is_shared(self) -> bool:
        """Whether it is another session's too."""
        return self._sessions > 1

    def shared(self) -> Source:
        """The same, counted as one more session's."""
        with self._lock:
            self._sessions += 1
        return self

    def leave(self) -> None:
        """Count it as one session's less."""
        with self._lock:
            self._sessions -= 1

    def read(self, tokens: NDArray[np.int32]) -> dict[str, Any]:
        """Compute them for ``tokens``; the engine's tensors by name, float32 ``[H, 1, C, D]`` and for what hides places
        behind the tokens ``[1, 1, 1, C]``.

        Raises:
            EngineError: the engine failed.
        """
        rows = min(rounded(len(tokens), ROWS, 4), -(-self._most // ROWS) * ROWS)
        places = min(rounded(len(tokens), PLACES, 1), self._most)
        ids = np.zeros((1, rows), np.int32)
        ids[0, : len(tokens)] = tokens
        self._request.set_tensor("source_ids", self._module.Tensor(ids))
        self._request.set_tensor("source_length", self._module.Tensor(np.array([len(tokens)], np.int32)))
        self._request.set_tensor("source_room", self._module.Tensor(np.array([places], np.int32)))
        try:
            self._request.infer()
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or ["RuntimeError"]
            raise EngineError(f"OpenVINO failed while reading the source: {lines[-1].strip()}") from error
        names = [port.get_any_name() for port in self._request.model_outputs]
        return {name: self._request.get_tensor(name) for name in names}


class TargetCache(GrowingCache):
    """State variables of the engine for the target, and the source's keys and values as inputs bound to them.

    One token is attended for by another kernel than several only where nothing is before them, and with several
    threads a head may be divided among them by how much there is: :attr:`can_be_alike` where neither happens.
    """

    def __init__(self, module: Any, compiled: Any, file: EncoderDecoderFile, threads: int) -> None:
        super().__init__(module, compiled, file)
        self.can_be_alike = file.cache_heads % threads == 0
        self._id, self._place = np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32)
        one = np.zeros(1, np.int32)
        self._of_one = {
            name: module.Tensor(array, shared_memory=True)
            for name, array in (("input_ids", self._id), ("position_ids", self._place), ("wanted", one))
        }
        self._kept.append(one)

    def bind_source(self, tensors: dict[str, Any]) -> None:
        """Attend to another source from now on."""
        for name, tensor in tensors.items():
            self._request.set_tensor(name, tensor)

    def run(
        self,
        tokens: NDArray[np.int32],
        start: int,
        wanted: int,
        alike: bool,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """See DecoderCache."""
        if alike and start == 0 and wanted == len(tokens) > 1:
            first = self.run(tokens[:1], 0, 1, alike)
            return np.concatenate([first, self.run(tokens[1:], 1, wanted - 1, alike)])
        if len(tokens) > 1 or wanted == 0:
            return self._run_several(tokens, start, wanted, out)
        if self._held != start:
            self._keep(start)
        self._id[0, 0], self._place[0, 0] = tokens[0], start
        for name, tensor in self._of_one.items():
            self._request.set_tensor(name, tensor)
        self._held = -1
        logits = self._given(self._infer(1), 1, out)
        self._held = start + 1
        return logits

    def _run_several(
        self, tokens: NDArray[np.int32], start: int, wanted: int, out: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """What padding writes stands behind the tokens, hidden from them, and is cut off before the next run."""
        count, asked = len(tokens), max(1, wanted)
        rows, asked_rows = rows_of(count), rows_of(asked)
        if rows > self._file.context - start:  # there are no places for padding
            cut = max(size for size in (1, *RUN_ROWS) if size < count)
            behind = min(wanted, count - cut)
            first = self.run(tokens[:cut], start, wanted - behind, False)
            return np.concatenate([first, self.run(tokens[cut:], start + cut, behind, False)])
        ids, places = np.zeros((1, rows), np.int32), np.arange(start, start + rows, dtype=np.int32)
        ids[0, :count] = tokens
        last = np.minimum(np.arange(count - asked, count - asked + asked_rows, dtype=np.int32), count - 1)
        if self._held != start:
            self._keep(start)
        tensor, request = self._module.Tensor, self._request
        request.set_tensor("input_ids", tensor(ids))
        request.set_tensor("position_ids", tensor(places[None]))
        request.set_tensor("wanted", tensor(last))
        self._held = -1  # until the run has ended well, the variables may hold anything
        logits = self._given(self._infer(len(last))[:asked], wanted, out)
        self._held = start + rows
        return logits

    def take(self, other: TargetCache, length: int) -> None:
        """Copy what ``other`` holds of its first ``length`` tokens, within the engine."""
        if not length:
            self._keep(0)
            return
        if other._held != length:
            other._keep(length)
        theirs = {state.name: state for state in other._request.query_state()}
        for state in self._request.query_state():
            state.state = theirs[state.name].state
        self._held = length


def rounded(count: int, least: int, parts: int) -> int:
    """``count`` rounded up to a multiple of ``least``, or of so many parts of the power of two above, if that is
    more."""
    step = max(least, (1 << (count - 1).bit_length()) // parts)
    return -(-count // step) * step


def rows_of(count: int) -> int:
    """Rows that so many tokens are run as."""
    if count == 1:
        return 1
    for rows in RUN_ROWS:
        if count <= rows:
            return rows
    return -(-count // RUN_ROWS[-1]) * RUN_ROWS[-1]
