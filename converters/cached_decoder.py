"""Runs a decoder family's program in torch token by token, with a KV cache.

For whoever writes in torch: what a student writes before conversion, beside what its artifacts write.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import nn

from .decoder_graph import Attention
from .torch_decoder import TorchDecoder, rotate, rotation


class CachedDecoder(TorchDecoder):
    """The student of a graph, whose weights it shares, writing one text token by token.

    Weights are rounded once, on their first use: they must not change while this object is used.
    """

    def __init__(self, graph: TorchDecoder) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(graph.__dict__)
        self._rounded: dict[tuple[str, ...], torch.Tensor] = {}
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._past = 0
        self._recording, self.whole_layers = None, False

    def forget(self) -> None:
        """Begin another text."""
        self._cache, self._past = {}, 0

    @torch.no_grad()
    def write(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append tokens to the text; the logits of what follows the last of them, ``[V]``."""
        found = self.run({"input_ids": torch.tensor([list(tokens)])})["logits"][0, -1]
        self._past += len(tokens)
        return found

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
        tokens = query.shape[1]
        q = self._split_heads(query, attention.heads)
        k, v = (self._split_heads(part, attention.kv_heads) for part in (key, value))
        if attention.rotary is not None:
            turned = rotation(attention.rotary, self._past + tokens)[:, self._past :].to(q.dtype)
            q, k = rotate(q, turned), rotate(k, turned)
        if layer in self._cache:
            past_key, past_value = self._cache[layer]
            k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        self._cache[layer] = (k, v)
        seen = torch.ones((tokens, k.shape[2]), dtype=torch.bool).tril(self._past)
        grouped = attention.kv_heads != attention.heads
        context = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=attention.scale, enable_gqa=grouped
        )
        return context.transpose(1, 2).reshape(query.shape[0], tokens, -1)

    def wanted_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """See DecoderBuilder: the last one alone."""
        return x[:, -1:]


def greedy_continuation(graph: TorchDecoder, prompt: Sequence[int], most: int) -> list[int]:
    """The likeliest tokens behind a prompt, one by one: ``most`` of them, or up to an end token, which is left out.

    ``graph``: evaluated, not trained; the text does not grow beyond its student's ``max_tokens``.
    """
    writing = CachedDecoder(graph)
    written: list[int] = []
    room = min(most, graph.student.max_tokens - len(prompt))
    ids: Sequence[int] = prompt
    for _ in range(room):
        token = int(writing.write(ids).argmax())
        if token in graph.student.eos_ids:
            break
        written.append(token)
        ids = (token,)
    return written
