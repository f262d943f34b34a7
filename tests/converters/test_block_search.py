"""The int4 grid: what is trained is what is frozen, and the searched grid loses less than the plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from edgescribe.converters.block_search import best_scales, search_blocks
from edgescribe.converters.fake_quantize import exact_scales, fake_quantize_blocks, largest_magnitudes
from edgescribe.converters.freeze import freeze
from edgescribe.converters.quantized_weights import exact_scales as exact_in_numpy
from edgescribe.converters.torch_decoder import TorchDecoder
from edgescribe.converters.torch_graph import as_matrix
from edgescribe.converters.writing_data import make_writing_examples
from hypothesis import given
from hypothesis import strategies as st

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
TEXTS = [f"a {word} of {other}" for word in ("game", "daemon", "library") for other in ("chess", "sound", "hosts")]


@given(st.floats(2.0**-30, 2.0**30, width=32))
def test_scales_are_exact_in_bfloat16_and_float16(value: float) -> None:
    scale = exact_in_numpy(np.array([value], np.float32))
    assert scale[0] > 0
    assert torch.from_numpy(scale).bfloat16().float().item() == scale[0]
    assert np.float32(np.float16(scale[0])) == scale[0]
    assert exact_scales(torch.from_numpy(scale).log()).item() == pytest.approx(float(scale[0]), rel=1e-6)


def test_what_is_trained_is_what_is_frozen(make_writer: Callable[..., Any]) -> None:
    graph = TorchDecoder(make_writer("llama", **SIZES), "w4a8-dynamic")
    search_blocks(graph, make_writing_examples(graph.student, TEXTS))
    frozen = freeze(graph)
    assert frozen.blocks
    for name, block in frozen.blocks.items():
        full = f"{name}.weight"
        weight = as_matrix(graph.weight(full).detach(), graph.layout[full])
        rounded = fake_quantize_blocks(weight, graph.block_scales(full))
        np.testing.assert_array_equal(block.dequantized(), rounded.detach().numpy())
        assert block.integers.min() >= -8
        assert block.integers.max() <= 7
        assert (block.scales == exact_in_numpy(block.scales)).all()


def test_a_width_that_no_block_fits_stays_on_the_int8_grid(make_writer: Callable[..., Any]) -> None:
    odd = make_writer("llama", hidden_size=36, num_attention_heads=3, num_key_value_heads=1, head_dim=12)
    graph = TorchDecoder(odd, "w4a8-dynamic")
    frozen = freeze(graph)
    assert "model.embed_tokens" in frozen.tables
    assert "model.layers.0.self_attn.q_proj" in frozen.matrices


def test_the_searched_grid_costs_less_where_inputs_count_unequally() -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(64, 128, generator=generator)
    energy = torch.rand(128, generator=generator) ** 8 + 1e-3
    inputs = torch.randn(500, 128, generator=generator) * energy.sqrt()

    def error(scales: torch.Tensor) -> float:
        rounded = fake_quantize_blocks(weight, scales)
        return float(((rounded - weight) @ inputs.T).square().mean())

    plain = error(largest_magnitudes(weight).bfloat16().float())
    assert error(best_scales(weight, energy)) < 0.75 * plain
    assert error(best_scales(weight, torch.ones(128))) < 0.95 * plain


def test_scales_and_weights_learn(make_writer: Callable[..., Any]) -> None:
    student = make_writer("llama", **SIZES)
    graph = TorchDecoder(student, "w4a8-dynamic")
    ids = torch.randint(0, 300, (4, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        goal = TorchDecoder(student).run({"input_ids": ids})["logits"]
    optimiser = torch.optim.Adam(graph.parameters(), 1e-3)
    before = graph.block_scales("model.layers.0.mlp.up_proj")
    assert before is not None
    losses = []
    for _ in range(30):
        loss = (graph.run({"input_ids": ids})["logits"] - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    after = graph.block_scales("model.layers.0.mlp.up_proj")
    assert after is not None
    assert losses[-1] < 0.7 * losses[0]
    assert not torch.equal(before, after)
