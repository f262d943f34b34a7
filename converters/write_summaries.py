"""Summaries written in torch, greedy or by beam search, many texts at a time.

Beam search keeps the likeliest beginnings of a summary; of the finished ones it takes that of the largest
log-likelihood divided by ``length ** length_penalty`` (Wu et al., "Google's Neural Machine Translation System", 2016,
in the form that transformers has it), and stops when it has as many finished as beams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from .cached_encoder_decoder import CachedEncoderDecoder
from .torch_encoder_decoder import TorchEncoderDecoder

ROWS = 64
"""Summaries that are written at a time, each beam counting as one."""

SOURCE_TOKENS = 16_384
"""The most tokens of the sources of one batch, padding and beams included."""


def write_summaries(
    graph: TorchEncoderDecoder,
    sources: Sequence[NDArray[np.int32]],
    start: Sequence[int],
    ends: Sequence[int],
    most: int,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> Iterator[dict[int, list[int]]]:
    """Write a summary of each source.

    Args:
        sources: tokens int32 ``[s]`` each.
        start: the tokens that every summary starts with.
        ends: tokens that end one.
        most: the most tokens of a summary, those of ``start`` included.
        beams: 1 is greedy.

    Yields:
        Tokens by the number of their source, without those that start and end it, a batch at a time (batches are of
        sources of like length, so numbers come in no order).
    """
    graph.eval()
    writer = CachedEncoderDecoder(graph)
    first = torch.tensor([list(start)])
    for batch in _batches([len(source) for source in sources], beams):
        writer.read([sources[number] for number in batch])
        if beams == 1:
            written = _greedy(writer, first, set(ends), most)
        else:
            written = _by_beams(writer, first, set(ends), most, beams, length_penalty)
        yield dict(zip(batch, written, strict=True))


def all_summaries(
    graph: TorchEncoderDecoder,
    sources: Sequence[NDArray[np.int32]],
    start: Sequence[int],
    ends: Sequence[int],
    most: int,
    on_progress: Callable[[float], None] | None = None,
) -> list[list[int]]:
    """Greedy summaries of all sources in their order; see :func:`write_summaries`."""
    found: dict[int, list[int]] = {}
    for some in write_summaries(graph, sources, start, ends, most):
        found |= some
        if on_progress is not None:
            on_progress(len(found) / len(sources))
    return [found[number] for number in range(len(sources))]


def _batches(lengths: Sequence[int], beams: int) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows = (len(batches[-1]) + 1) * beams
        if batches[-1] and (rows > ROWS or rows * lengths[number] > SOURCE_TOKENS):
            batches.append([])
        batches[-1].append(number)
    return [batch for batch in batches if batch]


def _greedy(writer: CachedEncoderDecoder, start: torch.Tensor, ends: set[int], most: int) -> list[list[int]]:
    count = writer.rows
    written: list[list[int]] = [[] for _ in range(count)]
    open_rows = list(range(count))
    ids = start.expand(count, -1)
    for _ in range(most - start.shape[1]):
        best = writer.write(ids).argmax(-1)
        going = [place for place, token in enumerate(best.tolist()) if token not in ends]
        for place in going:
            written[open_rows[place]].append(int(best[place]))
        if not going:
            break
        if len(going) < len(open_rows):
            writer.select(torch.tensor(going))
            open_rows = [open_rows[place] for place in going]
        ids = best[going][:, None]
    return written


@dataclass
class _Search:
    """The search for one text's summary: ``live`` beginnings with their log-likelihoods, and finished ones scored."""

    live: list[tuple[float, list[int]]]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)

    def best(self) -> list[int]:
        return max(self.finished, key=lambda each: each[0])[1]


def _by_beams(
    writer: CachedEncoderDecoder, start: torch.Tensor, ends: set[int], most: int, beams: int, length_penalty: float
) -> list[list[int]]:
    count = writer.rows
    searches = [_Search([(0.0, [])]) for _ in range(count)]
    open_texts = list(range(count))
    ids = start.expand(count, -1)
    steps = most - start.shape[1]
    for step in range(steps):
        likely = writer.write(ids).log_softmax(-1)
        # With 2 * beams candidates of each beginning, enough are left however many of them end here.
        values, tokens = likely.topk(min(2 * beams, likely.shape[-1]), dim=-1)
        rows: list[int] = []
        next_tokens: list[int] = []
        begun, still_open = 0, []
        for text in open_texts:
            search = searches[text]
            candidates = [
                (before + float(values[begun + place, rank]), int(tokens[begun + place, rank]), place)
                for place, (before, _) in enumerate(search.live)
                for rank in range(values.shape[1])
            ]
            candidates.sort(key=lambda each: -each[0])
            live: list[tuple[float, list[int]]] = []
            parents: list[int] = []
            for rank, (score, token, place) in enumerate(candidates[: 2 * beams]):
                words = search.live[place][1]
                if token in ends:
                    if rank < beams:
                        search.finished.append((score / (len(words) + 1) ** length_penalty, words))
                elif len(live) < beams:
                    live.append((score, [*words, token]))
                    parents.append(begun + place)
            begun += len(search.live)
            search.live = live
            if len(search.finished) < beams and live and step + 1 < steps:
                rows += parents
                next_tokens += [words[-1] for _, words in live]
                still_open.append(text)
                continue
            if not search.finished:
                search.finished = [(score / len(words) ** length_penalty, words) for score, words in live]
        if not still_open:
            break
        open_texts = still_open
        writer.select(torch.tensor(rows))
        ids = torch.tensor(next_tokens)[:, None]
    return [search.best() if search.finished else [] for search in searches]
