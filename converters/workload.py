"""How much work one call of a student is, counted from its sizes, for the cost model."""

from __future__ import annotations

from ..device_profiles.cost_model import Workload
from .anatomy import Shape, Task

BYTES = {"fp32": 4, "w8a8-static": 1, "w8a8-dynamic": 1}
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


def pruned_shape(shape: Shape, layers: int | None, neurons: int | None, heads: int | None) -> Shape:
    """The sizes after pruning, None where they stay; heads take the hidden width with them."""
    width = shape.head_width
    hidden = shape.hidden if heads is None else heads * width
    return Shape(
        layers=layers or shape.layers,
        hidden=hidden,
        heads=heads or shape.heads,
        neurons=neurons or shape.neurons,
        vocabulary=shape.vocabulary,
        positions=shape.positions,
        embedding=hidden if shape.embedding == shape.hidden else shape.embedding,
        labels=shape.labels,
        activation=shape.activation,
        eps=shape.eps,
        position_offset=shape.position_offset,
    )
