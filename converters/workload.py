"""How much work one call of a student is, counted from its sizes, for the cost model."""

from __future__ import annotations

from dataclasses import replace

from ..device_profiles.cost_model import Workload
from .anatomy import Shape, Task
from .prune import Pruning

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


def pruned_shape(shape: Shape, pruning: Pruning) -> Shape:
    """The sizes after pruning. A ``vocabulary`` of 0 (what the domain uses) is not known yet and stays whole."""
    hidden = pruning.hidden or (pruning.heads or shape.heads) * shape.head_width
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
