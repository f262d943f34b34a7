"""How a writer is measured in a process of its own: time to first token, decode steps, and what it foresees of texts.

A turn is a prompt of the asked number of tokens, then up to :data:`STEPS` greedy steps; turns go on until the effort's
calls (decode steps) and seconds are reached.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..runtimes.decoder_contract import DecoderSession
from .manifest import Manifest

if TYPE_CHECKING:
    from .measured_process import Effort
    from .text_codec import TextCodec

STEPS = 64
"""Decode steps of one turn."""

_PROGRESS_EVERY_S = 0.1


class TimedWriting(msgspec.Struct, kw_only=True):
    """Times of one session in milliseconds: of every decode step, and of every prefill of the prompt."""

    steps_ms: list[float]
    prefills_ms: list[float]

    @property
    def ttft_ms(self) -> float:
        """Median time from a prompt's tokens to the first token."""
        return float(np.median(self.prefills_ms))

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second while decoding: the mean rate of all steps."""
        return 1000 * len(self.steps_ms) / sum(self.steps_ms)


def time_writing(
    session: DecoderSession,
    prompts: Sequence[NDArray[np.int32]],
    tokens: int,
    effort: Effort,
    progress: Callable[[float], None],
) -> TimedWriting:
    """Time a session: each of ``prompts`` is cut, or repeated, to ``tokens`` tokens.

    Raises:
        UsageError: the context has no room for the prompt and a step.
    """
    steps = min(STEPS, session.context - tokens)
    if steps < 1:
        raise UsageError(f"a prompt of {tokens} tokens leaves no room in a context of {session.context}; measure fewer")
    rows = [np.tile(row, math.ceil(tokens / len(row)))[:tokens] for row in prompts]
    times, prefills = array("d"), array("d")
    _turn(session, rows[0], min(steps, max(1, effort.warmup)), array("d"), array("d"))
    begun = told = time.perf_counter()
    for turn in range(10**9):
        _turn(session, rows[turn % len(rows)], steps, times, prefills)
        now = time.perf_counter()
        part = min(len(times) / effort.samples, (now - begun) / effort.seconds if effort.seconds else 1.0)
        if part >= 1:
            break
        if now - told > _PROGRESS_EVERY_S:
            told = now
            progress(part)
    session.rewind(0)
    return TimedWriting(steps_ms=times.tolist(), prefills_ms=prefills.tolist())


def _turn(
    session: DecoderSession, prompt: NDArray[np.int32], steps: int, times: array[float], prefills: array[float]
) -> None:
    session.rewind(0)
    before = time.perf_counter()
    token = int(session.prefill(prompt).argmax())
    now = time.perf_counter()
    prefills.append((now - before) * 1000)
    for _ in range(steps):
        before = now
        token = int(session.step(token).argmax())
        now = time.perf_counter()
        times.append((now - before) * 1000)


def prompts_for(manifest: Manifest, codec: TextCodec, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Tokens of the texts, or where there are none those of the known answers' prompts."""
    rows = [np.array(codec.encode(text), np.int32) for text in texts[:16]]
    found = [row for row in rows if row.size]
    return found or [np.array(answer.prompt, np.int32) for each in manifest.artifacts for answer in each.answers]


def save_foreseen(
    session: DecoderSession, codec: TextCodec, texts: Path, outputs: Path, progress: Callable[[float], None]
) -> None:
    """What a session foresees of texts, token by token, each text in pieces that fit its context.

    ``outputs`` (``.npz``) gets ``values`` float32 ``[tokens - pieces, 2]``: the negative log-likelihood in nats and the
    likeliest token, of each piece's tokens from the second on; and ``lengths`` int64: the tokens of each piece.

    Args:
        texts: JSON Lines, a string for each text.
    """
    values: list[NDArray[np.float32]] = []
    lengths: list[int] = []
    size, told = max(1, texts.stat().st_size), time.perf_counter()
    with texts.open("rb") as file:
        for line in file:
            ids = np.array(codec.encode(msgspec.json.decode(line, type=str), specials=False), np.int32)
            for start in range(0, len(ids), session.context):
                piece = ids[start : start + session.context]
                if len(piece) < 2:
                    continue
                values.append(_foreseen(session, piece))
                lengths.append(len(piece))
            if time.perf_counter() - told > _PROGRESS_EVERY_S:
                told = time.perf_counter()
                progress(file.tell() / size)
    stacked = np.concatenate(values) if values else np.zeros((0, 2), np.float32)
    with outputs.open("wb") as file:
        np.savez(file, values=stacked, lengths=np.asarray(lengths, np.int64))


def _foreseen(session: DecoderSession, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    session.rewind(0)
    rows = []
    for start in range(0, len(ids) - 1, session.most_verified):
        part = ids[start : min(start + session.most_verified, len(ids) - 1)]
        logits = session.verify(part).astype(np.float64)
        top = logits.max(axis=1)
        wanted = logits[np.arange(len(part)), ids[start + 1 : start + 1 + len(part)]]
        losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - wanted
        rows.append(np.stack([losses, logits.argmax(axis=1)], axis=1).astype(np.float32))
    session.rewind(0)
    return np.concatenate(rows)
