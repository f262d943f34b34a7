"""What every engine's adapter gives for an encoder-decoder: a decoder's session that reads a source text first.

A session holds one source at a time, as keys and values for every layer of the decoder, computed once by ``read``;
what is written about it is a decoder's KV cache behind that. Both are in the engine's own memory. ``length``,
``rewind``, ``step``, ``verify`` and the rest speak of the target alone, whose first token is the one that starts a
text (:mod:`~edgescribe.runtimes.decoder_contract`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .decoder_contract import DecoderMemory, DecoderOptions, DecoderSession, Tokens


@dataclass(frozen=True)
class SourceAnswer:
    """What an artifact must answer: having read ``source``, after prefill of ``prompt``, these logits.

    ``source`` int32 ``[s]``, ``prompt`` int32 ``[n]``; ``tokens`` int32 ``[k]`` (the reference's best ones);
    ``expected`` float32 ``[k]``; ``tolerance``: the largest absolute difference allowed, in logits.
    """

    source: NDArray[np.int32]
    prompt: NDArray[np.int32]
    tokens: NDArray[np.int32]
    expected: NDArray[np.float32]
    tolerance: float


@dataclass(frozen=True)
class EncoderDecoderOptions(DecoderOptions):
    """How to open an encoder-decoder's artifact.

    As :class:`~edgescribe.runtimes.decoder_contract.DecoderOptions`, where ``context`` counts the target's tokens and
    ``answers`` stays empty.

    Attributes:
        source_context: the most tokens of a source, at most the artifact's own limit; None takes that limit.
        source_answers: checked once on open; a wrong answer raises :class:`~edgescribe.errors.WrongAnswerError`.
    """

    source_context: int | None = None
    source_answers: Sequence[SourceAnswer] = field(default=(), repr=False)


@runtime_checkable
class EncoderDecoderSession(DecoderSession, Protocol):
    """An opened encoder-decoder with its source and its KV cache.

    Every method of :class:`~edgescribe.runtimes.decoder_contract.DecoderSession` but ``rewind(0)``, ``fork`` and
    ``close`` raises :class:`~edgescribe.errors.InputError` before anything was read. ``fork`` shares the source and
    copies the target's cache. ``save_cache`` and ``load_cache`` are of the target alone: a saved cache belongs to its
    source.

    Attributes:
        source_context: the most tokens of a source.
    """

    source_context: int

    @property
    def source_length(self) -> int:
        """Tokens of the source that was read; 0: none was."""
        ...

    def read(self, tokens: Tokens) -> None:
        """Read a source in place of the one before; the target is empty afterwards.

        Raises:
            InputError: no tokens, tokens outside the vocabulary, or more than ``source_context``; the session then is
                as it was before.
            EngineError: the session is closed, or the engine failed; then no source is read.
        """
        ...

    def fork(self) -> EncoderDecoderSession:
        """Another session on the same weights and the same source with a copy of the target's cache."""
        ...

    def take(self, other: EncoderDecoderSession) -> None:
        """Become like ``other``, a fork of the same session: its source, and a copy of its target's cache.

        For beam search: cheaper than a new fork, since this session's memory is used again.

        Raises:
            InputError: the two are not of one family of forks.
        """
        ...


class EncoderDecoderRuntime(Protocol):
    """An engine's adapter for encoder-decoders; :mod:`~edgescribe.runtimes.registry` finds it by name."""

    name: str

    def open_encoder_decoder(self, artifact: Path, options: EncoderDecoderOptions) -> EncoderDecoderSession:
        """Open one artifact, after its predicted memory was held against the limit, and check its answers.

        Raises:
            MissingExtraError: the engine is not installed.
            EngineError: the device asked for is not there, or the engine refuses or miscomputes this artifact.
            BundleError: the file is not an encoder-decoder's artifact of this runtime.
            OverBudgetError: ``memory_limit`` is less than what is predicted.
            UsageError: a context is more than the artifact's limit.
        """
        ...

    def predicted_memory(
        self, artifact: Path, context: int | None = None, source_context: int | None = None
    ) -> DecoderMemory:
        """What a session will take, without opening it; ``cache`` is that of source and target together.

        Raises:
            BundleError: the file is not an encoder-decoder's artifact of this runtime.
            UsageError: a context is more than the artifact's limit.
        """
        ...
