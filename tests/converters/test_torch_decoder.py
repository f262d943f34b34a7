"""Attention as training computes it is attention as torch's fused kernel computes it, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from edgescribe.converters import torch_decoder
from edgescribe.converters.torch_decoder import graph_of, plain_attention


@pytest.mark.parametrize("heads", [(1, 1), (6, 6), (9, 3), (4, 1)], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 37])
def test_plain_products_are_the_fused_kernel(heads: tuple[int, int], tokens: int) -> None:
    noise = torch.Generator().manual_seed(tokens)
    shapes = [(2, count, tokens, 8) for count in (heads[0], heads[1], heads[1])]
    given = [torch.randn(shape, generator=noise, dtype=torch.float64) for shape in shapes]
    above = torch.randn(shapes[0], generator=noise, dtype=torch.float64)
    results = []
    for plain in (True, False):
        q, k, v = (each.clone().requires_grad_() for each in given)
        if plain:
            found = plain_attention(q, k, v, 0.3)
        else:
            found = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
        found.backward(above)
        results.append([found.detach(), q.grad, k.grad, v.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


def test_long_texts_are_trained_on_with_the_fused_kernel(
    make_writer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(make_writer("llama")).double()
    ids = torch.arange(40)[None]
    short = graph.run({"input_ids": ids})["logits"]
    monkeypatch.setattr(torch_decoder, "PLAIN_ATTENTION", 39)
    monkeypatch.setattr(torch_decoder, "plain_attention", lambda *_: pytest.fail("it keeps all scores"))
    torch.testing.assert_close(graph.run({"input_ids": ids})["logits"], short, atol=1e-9, rtol=1e-9)
