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


WRITTEN_TOKENS = 64
"""Tokens of a summary that a summariser's tokens a second are reckoned over, reading its source included."""

CROSS_OPERATORS_OF_LAYER = 5
"""Nodes for the attention of a decoder's layer to the source, beside those that every decoder's layer has."""


def read_workload(shape: Shape, precision: str, tokens: int) -> Workload:
    """A summariser's way from a source of ``tokens`` tokens to the first token: encoder, cross keys and values, a step.

    ``weight_bytes`` are those of the whole student: each is read once.
    """
    encoder, keys, decoder, head = _encoder_decoder_macs(shape)
    attention = 2 * tokens * tokens * shape.heads * shape.head_width * shape.layers
    moved = tokens * shape.layers * (8 * shape.hidden + 3 * shape.neurons) * 4
    tables = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return Workload(
        macs=int(tokens * (encoder + keys) + attention + MATRIX_VECTOR_SLOWER * (decoder + head)),
        int8=precision != "fp32",
        weight_bytes=int((encoder + keys + decoder + tables) * BYTES[precision]),
        activation_bytes=int(moved),
        operators=OPERATORS_OF_LAYER * shape.layers + _decoder_operators(shape) + 8,
    )


def summarize_workload(shape: Shape, precision: str, tokens: int, written: int) -> Workload:
    """One decode step of a summariser behind a source of ``tokens`` tokens and ``written`` tokens of a summary."""
    _, _, decoder, head = _encoder_decoder_macs(shape)
    width = shape.decoder_heads * shape.head_width
    attention = 2 * (tokens + written) * width * shape.decoder_layers
    return Workload(
        macs=int(MATRIX_VECTOR_SLOWER * (decoder + head) + attention),
        int8=precision != "fp32",
        weight_bytes=int((decoder + head) * BYTES[precision]),
        activation_bytes=attention * 4,
        operators=_decoder_operators(shape) + 4,
    )


def _decoder_operators(shape: Shape) -> int:
    return (DECODER_OPERATORS_OF_LAYER + CROSS_OPERATORS_OF_LAYER) * shape.decoder_layers


def _encoder_decoder_macs(shape: Shape) -> tuple[int, int, int, int]:
    """Multiply-accumulates for one token: of the encoder, of cross keys and values (for a token of the source), of
    the decoder and of the output head."""
    blocks = 3 if "gated" in shape.variant else 2
    encoder_width, decoder_width = shape.heads * shape.head_width, shape.decoder_heads * shape.head_width
    encoder = shape.layers * shape.hidden * (4 * encoder_width + blocks * shape.neurons)
    keys = shape.decoder_layers * shape.hidden * 2 * decoder_width
    decoder = shape.decoder_layers * shape.hidden * (6 * decoder_width + blocks * shape.decoder_neurons)
    return encoder, keys, decoder, shape.hidden * shape.vocabulary


def pruned_shape(shape: Shape, pruning: Pruning) -> Shape:
    """The sizes after pruning. A ``vocabulary`` of 0 (what the domain uses) is not known yet and stays whole."""
    hidden = pruning.hidden or (pruning.heads or shape.heads) * shape.head_width
    if shape.decoder_layers:
        heads = pruning.heads or (shape.heads if shape.width_of_head else hidden // shape.head_width)
        return replace(
            shape,
            layers=pruning.layers or shape.layers,
            decoder_layers=pruning.decoder_layers or shape.decoder_layers,
            hidden=pruning.hidden or (shape.hidden if shape.width_of_head else hidden),
            heads=heads,
            decoder_heads=heads if shape.decoder_heads == shape.heads else shape.decoder_heads,
            neurons=pruning.neurons or shape.neurons,
            decoder_neurons=pruning.decoder_neurons or pruning.neurons or shape.decoder_neurons,
            vocabulary=min(pruning.vocabulary or shape.vocabulary, shape.vocabulary),
        )
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
