"""What all decoder sessions do alike, whatever the engine: checking tokens and room, counting, chunking of prefill."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError, OverBudgetError, UsageError, WrongAnswerError
from .contract import Effective
from .decoder_contract import CacheState, DecoderAnswer, DecoderMemory, DecoderSession, Tokens


class CheckedDecoder(ABC):
    """Base of the engines' sessions; they give ``_run`` and what else is abstract here."""

    effective: Effective
    vocabulary: int
    context: int
    verifies_alike: bool
    most_verified: int
    chunk: int
    """Tokens of the largest run of prefill."""

    def __init__(self) -> None:
        self._length = 0
        self._closed = False

    @abstractmethod
    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        """Write ``tokens`` (at most ``chunk``) behind the first ``length`` and give the last ``wanted``'s logits.

        ``[wanted, V]``, an array of the caller's own, for ``wanted`` of 0 of no rows. Does not change ``length``.
        """

    @abstractmethod
    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        """Copies of the cache's arrays, cut to ``length``."""

    @abstractmethod
    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        """Put arrays of :meth:`_read_cache` back; raises InputError where they are not of this artifact."""

    @abstractmethod
    def _forked(self) -> CheckedDecoder:
        """A session on the same weights with an empty cache."""

    @abstractmethod
    def _free(self) -> None:
        """Free the cache, and the weights with the last session."""

    @property
    def length(self) -> int:
        """Tokens in the cache now."""
        return self._length

    def prefill(self, tokens: Tokens) -> NDArray[np.float32]:
        """See DecoderSession."""
        ids, before = self._checked(tokens), self._length
        result: NDArray[np.float32] = np.zeros((0, self.vocabulary), np.float32)
        try:
            for start in range(0, len(ids), self.chunk):
                part = ids[start : start + self.chunk]
                result = self._run(part, int(start + self.chunk >= len(ids)))
                self._length += len(part)
        except BaseException:
            # Interrupted or failed: what was written behind `before` counts as not there.
            self._cut(before)
            raise
        return self._only(result)

    def step(self, token: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """See DecoderSession."""
        checked = self._checked_token(token)
        if out is not None and (out.shape != (self.vocabulary,) or out.dtype != np.float32):
            raise InputError(
                f"the logits of {self.vocabulary} tokens do not go into {out.dtype} {list(out.shape)}: give float32"
            )
        result = self._step(checked, out)
        self._length += 1
        return result

    def _step(self, token: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """As :meth:`_run` for one token: its logits ``[V]``, which an engine may write into ``out``."""
        return self._only(self._run(np.array([token], np.int32), 1))

    @staticmethod
    def _only(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        row: NDArray[np.float32] = rows[0]
        return row

    def verify(self, tokens: Tokens) -> NDArray[np.float32]:
        """See DecoderSession."""
        ids = self._checked(tokens)
        if len(ids) > self.most_verified:
            raise InputError(f"{len(ids)} tokens to verify at once, where {self.most_verified} are the most")
        result = self._run(ids, len(ids))
        self._length += len(ids)
        return result

    def rewind(self, length: int) -> None:
        """See DecoderSession."""
        self._check_open()
        if not 0 <= length <= self._length:
            raise InputError(f"cannot rewind to {length} tokens: there are {self._length}")
        self._cut(length)

    def _cut(self, length: int) -> None:
        """Forget what lies behind ``length``; an engine that keeps a length of its own overrides this."""
        self._length = length

    def fork(self) -> DecoderSession:
        """See DecoderSession."""
        self._check_open()
        other = self._forked()
        other._write_cache(self._read_cache(), self._length)
        other._length = self._length
        return other

    def save_cache(self) -> CacheState:
        """See DecoderSession."""
        self._check_open()
        return CacheState(np.zeros(0, np.int32), self._read_cache())

    def load_cache(self, state: CacheState) -> None:
        """See DecoderSession."""
        self._check_open()
        length = len(state.tokens)
        if length > self.context:
            raise InputError(f"the saved cache has {length} tokens, and this session holds {self.context}")
        self._write_cache(dict(state.arrays), length)
        self._length = length

    def close(self) -> None:
        """See DecoderSession."""
        if not self._closed:
            self._closed = True
            self._free()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("this session was closed; open the artifact again")

    def _checked(self, tokens: Tokens) -> NDArray[np.int32]:
        self._check_open()
        ids = self._checked_ids(tokens)
        room = self.context - self._length
        if len(ids) > room:
            raise InputError(
                f"{len(ids)} more tokens do not fit: {self._length} of the session's {self.context} are taken. "
                "Shorten the text, or load with a larger context"
            )
        return ids

    def _checked_token(self, token: int) -> int:
        """As :meth:`_checked` for one token, which costs a step less than numpy's ways with a row of one."""
        if type(token) is int and 0 <= token < self.vocabulary and self._length < self.context and not self._closed:
            return token
        return int(self._checked([token])[0])

    def _checked_ids(self, tokens: Tokens) -> NDArray[np.int32]:
        """A row of token numbers of the vocabulary, at least one."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise InputError("no tokens were given, or something else than a row of token numbers")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary:
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise InputError(f"there is no token {wrong}: the vocabulary has {self.vocabulary}")
        return np.ascontiguousarray(ids, np.int32)


def checked_context(asked: int | None, limit: int, artifact: Path) -> int:
    """The context to open with.

    Raises:
        UsageError: it is not from 1 to the artifact's limit.
    """
    if asked is None:
        return limit
    if not 1 <= asked <= limit:
        raise UsageError(f"a context of {asked} tokens was asked for; {artifact.name} takes 1 to {limit}")
    return asked


def check_memory(memory: DecoderMemory, limit: int | None, context: int, artifact: Path) -> None:
    """Refuse what will not fit, before it is taken.

    Raises:
        OverBudgetError: the prediction is over ``limit`` bytes.
    """
    if limit is None or memory.total <= limit:
        return
    mib = 1 << 20
    spare = limit - (memory.total - memory.cache)
    fits = max(0, spare * context // max(1, memory.cache))
    advice = f"a context of {fits} tokens would fit" if fits else "no context fits; take a smaller precision"
    raise OverBudgetError(
        f"{artifact.name} with a context of {context} tokens is predicted to take {memory.total / mib:.0f} MiB "
        f"(weights {memory.weights / mib:.0f}, KV cache {memory.cache / mib:.0f}, scratch {memory.scratch / mib:.0f}, "
        f"engine {memory.engine / mib:.0f}), and {limit / mib:.0f} MiB are granted: {advice}"
    )


def check_answers(session: CheckedDecoder, answers: tuple[DecoderAnswer, ...], artifact: Path) -> None:
    """Prefill each answer's prompt and compare the logits of its tokens; the session is empty afterwards.

    Raises:
        WrongAnswerError: a logit is further off than the tolerance, or not a number.
    """
    for number, answer in enumerate(answers, 1):
        session.rewind(0)
        got = session.prefill(answer.prompt)[answer.tokens]
        check_logits(got, answer, f"{artifact.name}, known answer {number} of {len(answers)}", session.effective)
    session.rewind(0)


class ExpectedLogits(Protocol):
    """What a known answer of any session says of one row of logits."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens looked at: int32 ``[k]``."""

    @property
    def expected(self) -> NDArray[np.float32]:
        """Their logits: float32 ``[k]``."""

    @property
    def tolerance(self) -> float:
        """How far off a logit may be."""


def check_logits(got: NDArray[np.float32], answer: ExpectedLogits, which: str, used: Effective) -> None:
    """Hold the logits ``got`` ``[k]`` against a known answer; ``which`` names artifact and answer.

    Raises:
        WrongAnswerError: a logit is further off than the tolerance, or not a number.
    """
    off = np.abs(got.astype(np.float64) - answer.expected)
    if not (off <= answer.tolerance).all():
        at = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
        raise WrongAnswerError(
            f"{which}: the logit of token {answer.tokens[at]} is {got[at]:.6g} instead of {answer.expected[at]:.6g} "
            f"(off by at most {answer.tolerance:.3g} is allowed), on {used.engine} {used.engine_version} "
            f"({used.device}). The engine computes this artifact wrongly here, so it was not opened: take another "
            "runtime or precision of the bundle"
        )
