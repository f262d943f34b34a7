"""Runs an encoder-decoder family's programs in torch token by token, with a KV cache, many texts at a time.

For whoever writes in torch: a teacher's summaries to learn from, what a student writes in float32 before conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .decoder_graph import Attention
from .encoder_decoder_graph import RelativeBias, SourceAndTarget
from .torch_encoder_decoder import TorchEncoderDecoder

if TYPE_CHECKING:
    from .anatomy import Shape

FORBIDDEN = -1e4
"""Added to the score of what may not be looked at."""


class CachedEncoderDecoder(TorchEncoderDecoder):
    """The student of a graph, whose weights it shares, reading once and writing token by token.

    Weights are rounded once, on their first use: they must not change while this object is used. Rows of the batch are
    the texts being written; :meth:`select` leaves some of them out or takes them several times.
    """

    def __init__(self, graph: TorchEncoderDecoder) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(graph.__dict__)
        self._rounded: dict[tuple[str, ...], torch.Tensor] = {}
        self._mask = torch.zeros((0, 0), dtype=torch.long)
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._past = 0
        self._recording, self.whole_layers = None, False

    @property
    def programs(self) -> SourceAndTarget:
        """The family's two programs."""
        if self.anatomy.halves is None:
            raise TypeError(f"the family {self.anatomy.model_type} has no encoder and decoder")
        return self.anatomy.halves

    @property
    def rows(self) -> int:
        """Texts being written."""
        return len(self._mask)

    @torch.no_grad()
    def read(self, sources: Sequence[NDArray[np.int32]]) -> None:
        """Read a batch of sources, tokens int32 ``[s]`` each; what was written before is forgotten."""
        width = max(map(len, sources))
        ids = torch.full((len(sources), width), self.student.pad_id)
        self._mask = torch.zeros_like(ids)
        for row, source in enumerate(sources):
            ids[row, : len(source)] = torch.from_numpy(source.astype(np.int64))
            self._mask[row, : len(source)] = 1
        self._sources, self._cache, self._past = {}, {}, 0
        self._run(self.programs.encode, {"source_ids": ids, "source_mask": self._mask})
        self._kept = self._sources

    @torch.no_grad()
    def write(self, ids: torch.Tensor) -> torch.Tensor:
        """Append tokens ``[B, t]``; the logits of what follows the last of them, ``[B, V]``."""
        self._sources = self._kept
        results = self._run(self.programs.decode, {"input_ids": ids, "source_mask": self._mask})
        self._past += ids.shape[1]
        return results["logits"][:, -1]

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows, int64 ``[B']``, in their order; one may be there several times."""
        if len(rows) == len(self._mask) and bool((rows == torch.arange(len(rows))).all()):
            return
        self._mask = self._mask[rows]
        self._kept = {layer: (key[rows], value[rows]) for layer, (key, value) in self._kept.items()}
        self._cache = {layer: (key[rows], value[rows]) for layer, (key, value) in self._cache.items()}

    def _run(
        self, program: Callable[[TorchEncoderDecoder, Shape], None], feeds: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        self._feeds, self._results = feeds, {}
        self._biases: dict[tuple[str, int], torch.Tensor] = {}
        program(self, self.shape)
        results, self._results, self._feeds, self._biases = self._results, {}, {}, {}
        return results

    # Weights
    def _on_grid(self, weight: torch.Tensor, names: tuple[str, ...] = ()) -> torch.Tensor:
        if not names:
            return super()._on_grid(weight)
        if names not in self._rounded:
            self._rounded[names] = super()._on_grid(weight, names)
        return self._rounded[names]

    # Writing
    def position_embedding(self, table: str, start: int = 0) -> torch.Tensor:
        """See DecoderBuilder."""
        first = start + self._past
        return self._positions(table, slice(first, first + self._feeds["input_ids"].shape[1]))

    def attention(  # type: ignore[override]
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, attention: Attention
    ) -> torch.Tensor:
        """See DecoderBuilder."""
        if layer in self._cache:
            past_key, past_value = self._cache[layer]
            key, value = torch.cat([past_key, key], 1), torch.cat([past_value, value], 1)
        self._cache[layer] = (key, value)
        return self._attend(query, key, value, self._scores_bias(attention.relative, query.shape[1]), attention)

    def _scores_bias(self, relative: RelativeBias | None, tokens: int) -> torch.Tensor | None:
        """``[1, 1 or H, tokens, past + tokens]``, once for all layers; None where everything may be looked at alike."""
        if relative is None and tokens == 1:
            return None
        name = ("" if relative is None else relative.table, tokens)
        if name not in self._biases:
            keys = torch.arange(self._past + tokens)
            offsets = keys[None, :] - keys[self._past :, None]
            bias = (offsets > 0).float()[None, None] * FORBIDDEN
            if relative is not None:
                buckets = torch.from_numpy(relative.bucket_of(offsets.numpy()))
                bias = bias + self.weight(relative.table)[buckets].permute(2, 0, 1)[None]
            self._biases[name] = bias
        return self._biases[name]

    def wanted_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """See DecoderBuilder: the last one alone."""
        return x[:, -1:]
