"""Decoders in ONNX Runtime on the CPU: sessions whose KV cache is one block of memory that never moves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .checked_decoder import CheckedDecoder, check_answers, check_memory, checked_context
from .code_pages import release_code
from .contract import Effective
from .decoder_contract import DecoderMemory, DecoderOptions, DecoderSession
from .onnxruntime import NAME, engine
from .onnxruntime_decoder_binding import (
    CHUNK,
    FLOAT_BYTES,
    MOST_VERIFIED,
    SPARE,
    TRIED_TOKENS,
    DecoderBinding,
    SharedWeights,
    steps_like_verifications,
)
from .onnxruntime_decoder_engine import check_device, effective_of, engine_options, open_engine_session
from .onnxruntime_decoder_file import DecoderFile, data_file, read_decoder_file
from .onnxruntime_decoder_weights import MappedConstants
from .spare_memory import release_freed
from .threads import thread_count

ENGINE_BYTES = 60 << 20
"""What Python, numpy and ONNX Runtime 1.31 take on x86-64 Linux with a session of no weights."""

LET_GO_BYTES = 12 << 20 if sys.platform == "linux" else 0
"""What of that an opened decoder has let go of: the engine's start-up code."""


class OnnxRuntimeDecoder(CheckedDecoder):
    """A decoder opened in ONNX Runtime; see :class:`~edgescribe.runtimes.decoder_contract.DecoderSession`."""

    most_verified = MOST_VERIFIED
    chunk = CHUNK

    def __init__(self, weights: SharedWeights, file: DecoderFile, context: int, effective: Effective) -> None:
        super().__init__()
        self.effective, self.context, self.vocabulary = effective, context, file.vocabulary
        self._weights, self._file = weights, file
        self._wants_alike = True
        self._bound = DecoderBinding(weights, file, context)

    @property
    def verifies_alike(self) -> bool:
        """See DecoderSession; found out by trying at the first question, with four short runs.

        May be set to False: steps then take a few hundredths less time (a quarter at 1,000 tokens), and give other
        last bits than ``verify``.
        """
        if self._wants_alike and self._weights.alike is None:
            self._check_open()
            # With an int8 cache and a thread to spare, one token's attention is divided along the text.
            divided = self._file.cache_bytes != FLOAT_BYTES and self.effective.threads > self._file.heads
            self._weights.alike = self._file.precision != "fp32" and not divided and self._tried()
        return self._wants_alike and self._weights.alike is True

    @verifies_alike.setter
    def verifies_alike(self, wanted: bool) -> None:
        self._wants_alike = wanted

    def _tried(self) -> bool:
        trial = OnnxRuntimeDecoder(self._weights, self._file, min(TRIED_TOKENS, self._file.context), self.effective)
        try:
            return steps_like_verifications(trial)
        finally:
            trial.close()

    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        logits = self._bound.run(tokens, self._length, wanted, self._spares)
        if len(tokens) > MOST_VERIFIED and self._weights.constants is not None:
            self._weights.constants.release()  # rows of the table, with a stretch of the file around each
        return logits

    def _step(self, token: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        return self._only(self._bound.run(np.array([token], np.int32), self._length, 1, self._spares, out))

    @property
    def _spares(self) -> bool:
        # Float products of one row and of several differ, so that a spare row of attention would not help.
        return self._wants_alike and self._file.precision != "fp32"

    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        return self._bound.read_cache(self._length)

    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        self._bound.write_cache(arrays, length)

    def _forked(self) -> OnnxRuntimeDecoder:
        return OnnxRuntimeDecoder(self._weights, self._file, self.context, self.effective)

    def _free(self) -> None:
        self._bound.free()


class OnnxRuntimeDecoders:
    """The adapter of ONNX Runtime for decoders."""

    name = NAME

    def open_decoder(self, artifact: Path, options: DecoderOptions) -> DecoderSession:
        """See :class:`~edgescribe.runtimes.decoder_contract.DecoderRuntime`."""
        threads = thread_count(options.threads)
        file = read_decoder_file(artifact)
        context = checked_context(options.context, file.context, artifact)
        check_memory(_memory(file, context), options.memory_limit, context, artifact)
        module = engine()
        check_device(module, options.device)
        settings = engine_options(module, threads, options.spinning)
        # It would keep a plan of its memory for each length of a chunk, and the memory too.
        settings.enable_mem_pattern = False
        constants = MappedConstants(artifact, data_file(artifact))
        constants.give_to(module, settings)
        with constants.releasing():
            session = open_engine_session(module, artifact, settings)
        release_freed()
        weights = SharedWeights(module, session, constants=constants)
        decoder = OnnxRuntimeDecoder(weights, file, context, effective_of(module, session))
        try:
            check_answers(decoder, tuple(options.answers), artifact)
        except BaseException:
            decoder.close()
            raise
        constants.release()
        release_code(Path(module.__file__).parent)  # what read the graph and packed the weights
        return decoder

    def predicted_memory(self, artifact: Path, context: int | None = None) -> DecoderMemory:
        """See :class:`~edgescribe.runtimes.decoder_contract.DecoderRuntime`."""
        file = read_decoder_file(artifact)
        return _memory(file, checked_context(context, file.context, artifact))


DECODER = OnnxRuntimeDecoders()


def _memory(file: DecoderFile, context: int) -> DecoderMemory:
    # The engine's arena keeps up to twice of what the largest chunk's tensors take at a time.
    scratch = 8 * CHUNK * (6 * file.hidden + 3 * file.neurons) + 8 * file.vocabulary
    engine_bytes = ENGINE_BYTES - LET_GO_BYTES
    return DecoderMemory(file.weight_bytes, (context + SPARE) * file.token_bytes, scratch, engine_bytes)
