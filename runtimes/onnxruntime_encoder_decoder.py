"""Encoder-decoders in ONNX Runtime on the CPU: two graphs read the source, another writes the target.

Keys and values of the source are written into memory that the target's graph has bound; the target's cache is a
decoder's (:mod:`.onnxruntime_decoder_binding`). Float and int8 weights that read the source stay in the mapped file,
whose pages are given back while and after it is read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .checked_decoder import check_memory, checked_context
from .checked_encoder_decoder import CheckedEncoderDecoder, check_source_answers
from .contract import Effective
from .decoder_contract import DecoderMemory
from .encoder_decoder_contract import EncoderDecoderOptions, EncoderDecoderSession
from .onnxruntime import NAME, engine, products_saturate
from .onnxruntime_decoder import ENGINE_BYTES
from .onnxruntime_decoder_binding import (
    CHUNK,
    MOST_VERIFIED,
    SPARE,
    TRIED_TOKENS,
    DecoderBinding,
    SharedWeights,
    steps_like_verifications,
)
from .onnxruntime_decoder_engine import check_device, effective_of, engine_options, open_engine_session
from .onnxruntime_decoder_file import data_file
from .onnxruntime_decoder_pages import MappedPages
from .onnxruntime_encoder_decoder_file import EncoderDecoderFile, kept_file, read_encoder_decoder_file, source_file
from .onnxruntime_encoder_decoder_source import ReadSource
from .threads import thread_count

RUNS_BEFORE_RELEASE = 32
"""Runs after which the rows of the embedding table that they read are let go of: the system keeps a stretch of the file
for each."""


PASSING_BYTES = 32 << 20
"""The most of the mapped weights that a short source, which takes hardly any scratch memory, reads before their pages
are let go of."""


class OnnxRuntimeEncoderDecoder(CheckedEncoderDecoder):
    """An encoder-decoder opened in ONNX Runtime.

    See :class:`~edgescribe.runtimes.encoder_decoder_contract.EncoderDecoderSession`.
    """

    most_verified = MOST_VERIFIED
    chunk = CHUNK

    def __init__(
        self,
        weights: SharedWeights,
        pages: MappedPages,
        file: EncoderDecoderFile,
        contexts: tuple[int, int],
        effective: Effective,
    ) -> None:
        super().__init__()
        self.source_context, self.context = contexts
        self.effective, self.vocabulary = effective, file.target.vocabulary
        self._weights, self._pages, self._file = weights, pages, file
        self._wants_alike = True
        self._runs = 0
        self._bound = DecoderBinding(weights, file.target, self.context)
        self._source: ReadSource | None = None

    @property
    def verifies_alike(self) -> bool:
        """See DecoderSession; found out by trying at the first question, with four short runs.

        May be set to False: steps then take a few hundredths less time, and give other last bits than ``verify``.
        """
        if self._wants_alike and self._weights.alike is None:
            self._check_open()
            self._weights.alike = self._file.target.precision != "fp32" and self._tried()
        return self._wants_alike and self._weights.alike is True

    @verifies_alike.setter
    def verifies_alike(self, wanted: bool) -> None:
        self._wants_alike = wanted

    def _tried(self) -> bool:
        trial = self._another((self.source_context, min(TRIED_TOKENS, self.context)))
        try:
            trial.read(np.arange(min(TRIED_TOKENS, self.source_context), dtype=np.int32) % self.vocabulary)
            return steps_like_verifications(trial)
        finally:
            trial.close()

    def _read(self, tokens: NDArray[np.int32]) -> None:
        if self._source is None or self._source.is_shared:
            self._hold(None)
            self._hold(ReadSource(self._file, self.source_context))
        source = self._source
        if source is None:
            raise TypeError("memory for a source was made just now")
        source.read(tokens, self._weights, self._pages)
        self._bind_source(source)

    def _bind_source(self, source: ReadSource) -> None:
        for name, value in source.values.items():
            self._bound.bind_input(name, value)

    def _hold(self, source: ReadSource | None) -> None:
        """Use ``source``, whose users count this session already, in place of the one before."""
        if self._source is not None:
            self._source.leave()
        self._source = source

    def _take(self, other: CheckedEncoderDecoder) -> None:
        if not isinstance(other, OnnxRuntimeEncoderDecoder) or other._weights is not self._weights:
            raise InputError("a session takes the state of its own forks alone")
        source = other._source
        if source is not self._source:
            if source is not None:
                source.enter()
                self._bind_source(source)
            self._hold(source)
        self._bound.copy_cache(other._bound, other.length)

    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        # Float products of one row and of several differ, so that a spare row of attention would not help.
        spare = self._wants_alike and self._file.target.precision != "fp32"
        logits = self._bound.run(tokens, self._length, wanted, spare)
        self._runs += 1
        if self._runs % RUNS_BEFORE_RELEASE == 0:
            self._pages.release()
        return logits

    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        return self._bound.read_cache(self._length)

    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        self._bound.write_cache(arrays, length)

    def _forked(self) -> OnnxRuntimeEncoderDecoder:
        other = self._another((self.source_context, self.context))
        other._wants_alike = self._wants_alike
        return other

    def _another(self, contexts: tuple[int, int]) -> OnnxRuntimeEncoderDecoder:
        return OnnxRuntimeEncoderDecoder(self._weights, self._pages, self._file, contexts, self.effective)

    def _free(self) -> None:
        self._hold(None)
        self._bound.free()


class OnnxRuntimeEncoderDecoders:
    """The adapter of ONNX Runtime for encoder-decoders."""

    name = NAME

    def open_encoder_decoder(self, artifact: Path, options: EncoderDecoderOptions) -> EncoderDecoderSession:
        """See :class:`~edgescribe.runtimes.encoder_decoder_contract.EncoderDecoderRuntime`."""
        threads = thread_count(options.threads)
        file = read_encoder_decoder_file(artifact)
        contexts = _contexts(file, options.source_context, options.context, artifact)
        check_memory(_memory(file, contexts), options.memory_limit, sum(contexts), artifact)
        module = engine()
        check_device(module, options.device)
        target = engine_options(module, threads, options.spinning)
        reader = engine_options(module, threads, options.spinning)
        for each in (target, reader):
            # The engine would keep a plan of its memory for each length of a source.
            each.enable_mem_pattern = False
        if not file.source_is_packed:
            # Hundreds of rows are multiplied as fast by weights as they lie in the file, which then stay there.
            reader.add_session_config_entry("session.disable_prepacking", "1")
        if products_saturate():
            for each in (reader, target) if file.target.precision == "w8a8-static" else (reader,):
                each.add_session_config_entry("session.x64quantprecision", "1")
        pages = MappedPages()
        with pages.taken(data_file(artifact)):
            readers = [open_engine_session(module, each(artifact), reader) for each in (source_file, kept_file)]
            weights = SharedWeights(module, open_engine_session(module, artifact, target), tuple(readers))
        pages.release()
        effective = effective_of(module, weights.session)
        session = OnnxRuntimeEncoderDecoder(weights, pages, file, contexts, effective)
        try:
            check_source_answers(session, tuple(options.source_answers), artifact)
        except BaseException:
            session.close()
            raise
        return session

    def predicted_memory(
        self, artifact: Path, context: int | None = None, source_context: int | None = None
    ) -> DecoderMemory:
        """See :class:`~edgescribe.runtimes.encoder_decoder_contract.EncoderDecoderRuntime`."""
        file = read_encoder_decoder_file(artifact)
        return _memory(file, _contexts(file, source_context, context, artifact))


ENCODER_DECODER = OnnxRuntimeEncoderDecoders()


def _contexts(
    file: EncoderDecoderFile, source_context: int | None, context: int | None, artifact: Path
) -> tuple[int, int]:
    """The contexts of source and target to open with."""
    return (
        checked_context(source_context, file.source_context, artifact),
        checked_context(context, file.target.context, artifact),
    )


def _memory(file: EncoderDecoderFile, contexts: tuple[int, int]) -> DecoderMemory:
    target, (source, context) = file.target, contexts
    cache = (context + SPARE) * target.token_bytes + source * file.source_token_bytes
    # Scores and relative positions, and a layer's other tensors.
    reading = 4 * source * (2 * source * target.heads + 8 * target.hidden + 4 * target.neurons)
    writing = 8 * MOST_VERIFIED * (6 * target.hidden + 3 * target.neurons) + 8 * target.vocabulary
    if file.source_is_packed or sys.platform != "linux":
        weights, passing = target.weight_bytes + file.source_weight_bytes, 0
    else:
        # Weights that are only read through the mapped file pass by, where its pages can be let go of.
        weights, passing = target.weight_bytes, min(file.source_weight_bytes, PASSING_BYTES)
    return DecoderMemory(weights, cache, max(reading, writing, passing), ENGINE_BYTES)
