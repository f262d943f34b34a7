"""How much work one call of a student is, counted from its sizes, for the cost model."""

from __future__ import annotations

from dataclasses import replace

from ..device_profiles.cost_model import Workload
from .anatomy import Shape, Task
from .prune import Pruning

BYTES = {"fp32": 4, "w8a8-static": 1, "w8a8-dynamic": 1, "w4a8-dynamic": 0.5 + 2 / 32}
OPERATORS_OF_LAYER = 14
"""Nodes that an engine runs for one encoder layer after fusion: products, attention, norms, roundings."""


def workload(shape: Shape, task: Task, precision: str, tokens: int) -> Workload:
    """Multiply-accumulates, bytes and operators of one call at batch 1.

    A classifier's last layer works on keys and values of all tokens, and on the first token alone otherwise.
    """
    width, neurons = shape.hidden, shape.neurons
    dense = 4 * width * width + 2 * width * neurons
    attention = 2 * tokens * width
    whole_layers = shape.layers - (1 if task == "classify" else 0)
    macs = tokens * whole_layers * (dense + attention)
    if task == "classify":
        macs += tokens * 2 * width * width + dense - 2 * width * width + attention
    macs += (width * width + width * shape.labels) * (tokens if task == "tag" else 1)
    size = BYTES[precision]
    weights = shape.layers * dense + (shape.vocabulary + shape.positions) * shape.embedding
    moved = tokens * (whole_layers * (10 * width + 2 * neurons) + 4 * width) * 4
    return Workload(
        macs=int(macs),
        int8=precision != "fp32",
        weight_bytes=int(weights * size),
        activation_bytes=int(moved),
        operators=OPERATORS_OF_LAYER * shape.layers + 8,
    )


MATRIX_VECTOR_SLOWER = 4
"""How many times fewer multiply-accumulates a second engines reach on one token than on many; measured once on x86-64
(SmolLM2-135M: 16 against 70 to 130 GMAC/s on two threads), and no less uncertain than that."""

DECODER_OPERATORS_OF_LAYER = 12


def decode_workload(shape: Shape, precision: str, context: int) -> Workload:
    """One decode step of a writer at batch 1 behind ``context`` tokens."""
    layers, head = _decoder_macs(shape)
    attention = 2 * context * shape.heads * shape.head_width * shape.layers
    cache = 2 * context * shape.kv_heads * shape.head_width * shape.layers * 4
    return Workload(
        macs=int(MATRIX_VECTOR_SLOWER * (layers + head) + attention),
        int8=precision != "fp32",
        weight_bytes=int((layers + head) * BYTES[precision]),
        activation_bytes=cache,
        operators=DECODER_OPERATORS_OF_LAYER * shape.layers + 4,
    )


def prefill_workload(shape: Shape, precision: str, tokens: int) -> Workload:
    """Prefill of ``tokens`` tokens of a writer; logits are computed for the last alone."""
    layers, head = _decoder_macs(shape)
    attention = tokens * tokens * shape.heads * shape.head_width * shape.layers
    return Workload(
        macs=int(tokens * layers + head + attention),
        int8=precision != "fp32",
        weight_bytes=int((layers + head) * BYTES[precision]),
        activation_bytes=int(tokens * shape.layers * (8 * shape.hidden + 3 * shape.neurons) * 4),
        operators=DECODER_OPERATORS_OF_LAYER * shape.layers + 4,
    )


def _decoder_macs(shape: Shape) -> tuple[int, int]:
    """Multiply-accumulates for one token in all layers' products, and in the output head."""
    rows = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_width
    return shape.layers * shape.hidden * (rows + 3 * shape.neurons), shape.hidden * shape.vocabulary


def pruned_shape(shape: Shape, pruning: Pruning) -> Shape:
    """The sizes after pruning. A ``vocabulary`` of 0 (what the domain uses) is not known yet and stays whole."""
    hidden = pruning.hidden or (pruning.heads or shape.heads) * shape.head_width
    if shape.kv_heads:
        heads = pruning.heads or shape.heads
        return replace(
            shape,
            layers=pruning.layers or shape.layers,
            hidden=pruning.hidden or shape.hidden,
            heads=heads,
            kv_heads=max(1, heads * shape.kv_heads // shape.heads),
            neurons=pruning.neurons or shape.neurons,
            vocabulary=min(pruning.vocabulary or shape.vocabulary, shape.vocabulary),
            positions=min(pruning.positions or shape.positions, shape.positions),
        )
    return replace(
        shape,
        layers=pruning.layers or shape.layers,
        hidden=hidden,
        heads=pruning.heads or max(1, hidden // shape.head_width),
        neurons=pruning.neurons or shape.neurons,
        vocabulary=min(pruning.vocabulary or shape.vocabulary, shape.vocabulary),
        positions=min((pruning.positions or shape.positions) + shape.position_offset, shape.positions),
        embedding=hidden if shape.embedding == shape.hidden else shape.embedding,
    )
