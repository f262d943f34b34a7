"""Beam search over forks of a session: the summaries of the highest score, several of them written side by side.

Scores are sums of log-probabilities divided by a power of the length (Wu et al., "Google's Neural Machine Translation
System", 2016, in the simpler form of fairseq and transformers). What is kept, what counts as finished and when the
search ends is as in ``generate(num_beams=…)`` of transformers, so that a checkpoint's own settings mean the same here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import WrongAnswerError
from ..runtimes.encoder_decoder_contract import EncoderDecoderSession
from .ngram_blocking import Blocking, block
from .sampling import top_tokens

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True)
class Search:
    """How to search.

    Attributes:
        start: tokens that start every summary. What stands behind the first of them counts as written where a length
            is told, as where transformers forces it.
        end_tokens: tokens that end a summary.
        beams: summaries that are written side by side.
        max_new_tokens: the most tokens behind ``start``.
        length_penalty: power of the length that sums are divided by; over 0 favours long summaries, under 0 short ones.
        early_stopping: True ends the search with ``beams`` finished summaries; False when the best unfinished one
            would not be better if it ended now; ``"never"`` when it could not become better at any length.
        blocking: what may not come next.
    """

    start: Sequence[int]
    end_tokens: frozenset[int]
    beams: int
    max_new_tokens: int
    length_penalty: float
    early_stopping: EarlyStopping
    blocking: Blocking


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A summary that was found: its tokens behind those that start it, its score, and whether a token ended it, which
    is not among them.
    """

    tokens: tuple[int, ...]
    score: float
    ended: bool


@dataclass(slots=True)
class _Beam:
    tokens: tuple[int, ...]
    total: float
    parent: int


def search(
    session: EncoderDecoderSession,
    spare: list[EncoderDecoderSession],
    asked: Search,
    going_on: Callable[[], bool],
) -> list[Hypothesis] | None:
    """The best summaries of what ``session`` has read, the best first; None when ``going_on`` said to stop.

    Args:
        session: with an empty target; what it holds at the end is of no beam in particular.
        spare: forks of it to write beams with; more are added where there are too few, and all are left there.
        asked: how to search; ``max_new_tokens`` is at least 1 and fits the session.
        going_on: asked before every step.

    Raises:
        WrongAnswerError: the engine gave logits that are no numbers.
        EngineError: it failed.
    """
    sessions = [session]
    beams = [_Beam((), 0.0, 0)]
    finished: list[Hypothesis] = []
    forced = len(asked.start) - 1
    logits = [session.prefill(asked.start)]
    while len(spare) < asked.beams - 1:
        spare.append(session.fork())
    for written in range(1, asked.max_new_tokens + 1):
        candidates = _candidates(beams, logits, asked)
        divisor = _power(written + forced, asked)
        last = written == asked.max_new_tokens
        running: list[_Beam] = []
        for rank, beam in enumerate(candidates):
            ended = beam.tokens[-1] in asked.end_tokens
            if not ended and not last:
                running.append(beam)
            elif rank < asked.beams:
                tokens = beam.tokens[:-1] if ended else beam.tokens
                finished.append(Hypothesis(tokens, beam.total / divisor, ended))
        del running[asked.beams :]
        finished = sorted(finished, key=lambda found: -found.score)[: asked.beams]
        if last or not running or _is_done(running[0].total, finished, written + forced, asked):
            break
        sessions = _placed(sessions, [*spare, session], running)
        logits = []
        for beam, each in zip(running, sessions, strict=True):
            if not going_on():
                return None
            logits.append(each.step(beam.tokens[-1]))
        beams = running
    return finished


def _candidates(beams: list[_Beam], logits: list[NDArray[np.float32]], asked: Search) -> list[_Beam]:
    """The likeliest continuations of all beams: so many that enough are left if each beam's best ones end it."""
    most = max(2, 1 + len(asked.end_tokens)) * asked.beams
    found: list[tuple[float, int, int]] = []
    for parent, (beam, row) in enumerate(zip(beams, logits, strict=True)):
        scores = log_softmax(row)
        block(scores, asked.blocking.blocked([*asked.start, *beam.tokens]))
        for token in top_tokens(scores, min(most, len(scores))).tolist():
            if scores[token] != -np.inf:
                found.append((beam.total + float(scores[token]), parent, token))
    found.sort(key=lambda each: (-each[0], each[1], each[2]))
    return [_Beam((*beams[parent].tokens, token), total, parent) for total, parent, token in found[:most]]


def _is_done(best: float, finished: list[Hypothesis], length: int, asked: Search) -> bool:
    """Whether no unfinished summary can, or shall, take the place of a finished one."""
    if len(finished) < asked.beams:
        return False
    if asked.early_stopping is True:
        return True
    if asked.early_stopping == "never" and asked.length_penalty > 0:
        length = asked.max_new_tokens + len(asked.start) - 1
    return best / _power(length, asked) <= finished[-1].score


def _power(length: int, asked: Search) -> float:
    return float(float(length) ** asked.length_penalty)


def _placed(
    sessions: list[EncoderDecoderSession], everything: list[EncoderDecoderSession], running: list[_Beam]
) -> list[EncoderDecoderSession]:
    """A session for each beam with its parent's cache: the parent's own for the first of its children."""
    placed: list[EncoderDecoderSession | None] = []
    kept: set[int] = set()
    for beam in running:
        first = beam.parent not in kept
        placed.append(sessions[beam.parent] if first else None)
        kept.add(beam.parent)
    used = {id(each) for each in placed if each is not None}
    free = [each for each in everything if id(each) not in used]
    found: list[EncoderDecoderSession] = []
    for beam, each in zip(running, placed, strict=True):
        if each is None:
            each = free.pop()
            each.take(sessions[beam.parent])
        found.append(each)
    return found


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms of the probabilities, ``[V]``; in the logits' own memory.

    Raises:
        WrongAnswerError: they are no numbers.
    """
    highest = logits.max()
    if not np.isfinite(highest):
        raise WrongAnswerError(
            f"the engine gave the logit {highest}, from which no token can be chosen; load another runtime or "
            "precision of the bundle"
        )
    logits -= highest
    logits -= np.float32(np.log(np.exp(logits).sum(dtype=np.float64)))
    return logits
