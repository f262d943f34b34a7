"""What all sessions of encoder-decoders do alike, whatever the engine: checking the source, sharing it among forks."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .checked_decoder import CheckedDecoder, check_logits
from .decoder_contract import CacheState, Tokens
from .encoder_decoder_contract import EncoderDecoderSession, SourceAnswer


class CheckedEncoderDecoder(CheckedDecoder):
    """Base of the engines' sessions; beside what a decoder's session gives, they give ``_read`` and ``_take``."""

    source_context: int

    def __init__(self) -> None:
        super().__init__()
        self._source_length = 0

    @abstractmethod
    def _read(self, tokens: NDArray[np.int32]) -> None:
        """Compute keys and values of a checked source for this session alone: forks keep the one that they have."""

    @abstractmethod
    def _take(self, other: CheckedEncoderDecoder) -> None:
        """Share ``other``'s source and copy its target's cache, ``other.length`` tokens; InputError: no kin."""

    @property
    def source_length(self) -> int:
        """Tokens of the source that was read; 0: none was."""
        return self._source_length

    def read(self, tokens: Tokens) -> None:
        """See EncoderDecoderSession."""
        self._check_open()
        ids = self._checked_ids(tokens)
        if len(ids) > self.source_context:
            raise InputError(
                f"the source has {len(ids):,} tokens, and this session reads {self.source_context:,} at once: shorten "
                "it, or summarise it in parts"
            )
        self._source_length = 0
        self._cut(0)
        self._read(ids)
        self._source_length = len(ids)

    def forget(self) -> None:
        """Go back to where nothing was read."""
        self._source_length = self._length = 0

    def take(self, other: EncoderDecoderSession) -> None:
        """See EncoderDecoderSession."""
        self._check_open()
        if not isinstance(other, type(self)):
            raise InputError("a session takes the state of its own forks alone")
        other._check_open()
        if other is self:
            return
        self._take(other)
        self._source_length = other._source_length
        self._length = other._length

    def fork(self) -> EncoderDecoderSession:
        """See EncoderDecoderSession."""
        self._check_open()
        other = self._forked()
        if not isinstance(other, CheckedEncoderDecoder):
            raise TypeError("a fork of an encoder-decoder's session is one itself")
        other.take(self)
        return other

    def save_cache(self) -> CacheState:
        """See EncoderDecoderSession."""
        self._check_open()
        self._check_read()
        return super().save_cache()

    def load_cache(self, state: CacheState) -> None:
        """See EncoderDecoderSession."""
        self._check_open()
        self._check_read()
        super().load_cache(state)

    def _checked(self, tokens: Tokens) -> NDArray[np.int32]:
        self._check_open()
        self._check_read()
        return super()._checked(tokens)

    def _checked_token(self, token: int) -> int:
        if not self._source_length:
            self._check_open()
            self._check_read()
        return super()._checked_token(token)

    def _check_read(self) -> None:
        if not self._source_length:
            raise InputError("no source was read yet; read one before writing about it")


def check_source_answers(
    session: CheckedEncoderDecoder, answers: tuple[SourceAnswer, ...], artifact: Path
) -> None:
    """Read each answer's source, prefill its prompt and compare logits; nothing was read afterwards.

    Raises:
        WrongAnswerError: a logit is further off than the tolerance, or not a number.
    """
    for number, answer in enumerate(answers, 1):
        session.read(answer.source)
        got = session.prefill(answer.prompt)[answer.tokens]
        check_logits(got, answer, f"{artifact.name}, known answer {number} of {len(answers)}", session.effective)
    session.forget()
