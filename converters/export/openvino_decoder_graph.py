"""Writes a decoder family's program as an OpenVINO model with a KV cache in state variables.

The model takes T tokens of one text; its variables hold what came before:

- ``input_ids`` and ``position_ids`` int32 ``[1, T]``: the tokens and their places in the text;
- ``wanted`` int32 ``[n]``: which of the T have their logits wanted;
- ``beam_idx`` int32 ``[1]``: nought (part of the form that the CPU plugin fuses);
- ``logits`` float32 ``[1, n, V]``;
- variables ``past.<layer>.key`` and ``.value`` float32 ``[1, K, P, D]``, which grow by T in each run; the plugin stores
  them in what ``KV_CACHE_PRECISION`` says.

The parts are written in the forms that OpenVINO 2026.4's CPU plugin fuses: ``RMS``, ``RoPE``, attention with its cache
(``ScaledDotProductAttention`` that reads and grows the variables), or after the engine's own transformation
``PagedAttention``. So that this transformation can put tokens where the batch was, nothing here depends on which of
the first two axes counts tokens.
"""

from __future__ import annotations

import json

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ...errors import StudentError
from ..decoder_graph import Attention, Norm, Rotary
from ..graph import ActivationKind
from ..quantized_weights import QuantizedWeights
from .openvino_decoder_products import DecoderProducts
from .openvino_nodes import NamedConstants, Node, integers, join_heads, number, split_heads, width_of

INPUTS = ("input_ids", "position_ids", "wanted", "beam_idx")
HIDDEN_SCORE = -3.0e38
"""What a query gives tokens behind it."""


class OpenVinoDecoderGraph:
    """Implements :class:`~edgescribe.converters.decoder_graph.DecoderBuilder` by writing an :class:`openvino.Model`.

    Args:
        weights: the numbers to store.
        context: the most tokens of a text; rotary positions are stored up to it.
    """

    def __init__(self, weights: QuantizedWeights, context: int) -> None:
        self._context = context
        self._products = DecoderProducts(weights)
        self._constants = NamedConstants()
        self._inputs = {name: _input(name, 1 if name in ("wanted", "beam_idx") else 2) for name in INPUTS}
        self._outputs: list[Node] = []
        self._sinks: list[Node] = []
        self._rotations: dict[Rotary, tuple[Node, Node]] = {}
        self._mask: Node | None = None
        self.cache_widths: dict[int, tuple[int, int]] = {}
        self.vocabulary = 0

    def model(self, name: str, properties: dict[str, str]) -> ov.Model:
        """The model built so far, its nodes named in order, so that the same program gives the same file."""
        model = ov.Model(self._outputs, self._sinks, list(self._inputs.values()), name)
        for index, node in enumerate(model.get_ordered_ops()):
            kind = node.get_type_name()
            if kind not in ("Parameter", "Result") and ":" not in node.get_friendly_name():
                node.set_friendly_name(f"{kind}/{index}")
        for key, value in {**properties, "heights": json.dumps(self._products.heights)}.items():
            model.set_rt_info(value, ["edgescribe", key])
        return model

    # Inputs and outputs
    def token_ids(self) -> Node:
        """See DecoderBuilder."""
        return self._inputs["input_ids"]

    def output(self, name: str, value: Node) -> None:
        """See DecoderBuilder."""
        result = ops.result(value, name=f"{name}/result")
        result.output(0).get_tensor().set_names({name})
        self._outputs.append(result)

    # Embeddings
    def embedding(self, ids: Node, table: str) -> Node:
        """See DecoderBuilder."""
        return self._products.rows(ids, table)

    def position_embedding(self, table: str, start: int = 0) -> Node:
        """See DecoderBuilder."""
        places = self._inputs["position_ids"]
        if start:
            places = ops.add(places, ops.constant(np.array(start, np.int32)))
        return self._products.rows(places, table)

    def scale(self, x: Node, factor: float) -> Node:
        """See DecoderBuilder."""
        return ops.multiply(x, number(factor))

    def mark_layer(self, x: Node, layer: int) -> None:
        """See DecoderBuilder."""

    # Layers
    def linear(self, x: Node, weight: str, site: str, activation: ActivationKind | None = None) -> Node:
        """See DecoderBuilder."""
        y = self._products.product(x, (weight,), site)
        return y if activation is None else _activation(y, activation)

    def linears(self, x: Node, weights: tuple[str, ...], site: str) -> tuple[Node, ...]:
        """See DecoderBuilder."""
        if not self._products.can_join(weights):
            return tuple(self._products.product(x, (name,), site) for name in weights)
        widths = tuple(self._products.height(name) for name in weights)
        return _cut(self._products.product(x, weights, site), widths)

    def joined_linear(self, x: Node, weight: str, widths: tuple[int, ...], site: str) -> tuple[Node, ...]:
        """See DecoderBuilder."""
        return _cut(self._products.product(x, (weight,), site), widths)

    def norm(self, x: Node, norm: Norm) -> Node:
        """See DecoderBuilder."""
        axis = integers([-1])
        gain = self._products.vector(f"{norm.name}.weight", norm.offset)
        if norm.kind == "layer":
            y = ops.mvn(x, axis, True, float(norm.eps), "inside_sqrt")
            return ops.add(ops.multiply(y, gain), self._products.vector(f"{norm.name}.bias"))
        mean = ops.reduce_mean(ops.power(x, number(2)), axis, True)
        return ops.multiply(ops.multiply(x, ops.divide(number(1), ops.sqrt(ops.add(mean, number(norm.eps))))), gain)

    def add_norm(self, x: Node, update: Node, norm: Norm) -> tuple[Node, Node]:
        """See DecoderBuilder."""
        total = ops.add(x, update)
        return total, self.norm(total, norm)

    def head_norm(self, x: Node, norm: Norm, heads: int) -> Node:
        """See DecoderBuilder."""
        apart = ops.reshape(x, integers([0, 0, heads, width_of(x) // heads]), True)
        return ops.reshape(self.norm(apart, norm), integers([0, 0, width_of(x)]), True)

    def gate(self, gate: Node, up: Node, kind: ActivationKind) -> Node:
        """See DecoderBuilder."""
        return ops.multiply(_activation(gate, kind), up)

    def add(self, a: Node, b: Node) -> Node:
        """See DecoderBuilder."""
        return ops.add(a, b)

    # Attention
    def attention(self, query: Node, key: Node, value: Node, layer: int, attention: Attention) -> Node:
        """See DecoderBuilder."""
        q = split_heads(query, attention.heads)
        k, v = (split_heads(part, attention.kv_heads) for part in (key, value))
        if attention.rotary is not None:
            q, k = self._turned(q, attention.rotary), self._turned(k, attention.rotary)
        self.cache_widths[layer] = attention.kv_heads, attention.head_width
        keys, values = (
            self._for_all_heads(self._grown(f"past.{layer}.{part}", new, attention), attention)
            for part, new in (("key", k), ("value", v))
        )
        context = ops.scaled_dot_product_attention(q, keys, values, self._causal_mask(), number(attention.scale))
        return join_heads(context)

    def _grown(self, name: str, new: Node, attention: Attention) -> Node:
        """What a variable holds with ``new`` ``[B, K, T, D]`` behind it, which it holds from now on."""
        batch = ops.gather(ops.shape_of(self._inputs["input_ids"]), integers([0]), integers(0))
        empty = ops.concat([batch, integers([attention.kv_heads, 0, attention.head_width])], 0)
        shape = ov.PartialShape([-1, attention.kv_heads, -1, attention.head_width])
        held = ops.read_value(ops.broadcast(number(0), empty), name, ov.Type.f32, shape)
        grown = ops.concat([ops.gather(held, self._inputs["beam_idx"], integers(0)), new], 2)
        self._sinks.append(ops.assign(grown, name))
        return grown

    @staticmethod
    def _for_all_heads(x: Node, attention: Attention) -> Node:
        group = attention.heads // attention.kv_heads
        if group == 1:
            return x
        spread = ops.broadcast(ops.unsqueeze(x, integers([2])), integers([1, 1, group, 1, 1]), None, "BIDIRECTIONAL")
        return ops.reshape(spread, integers([0, attention.heads, -1, attention.head_width]), True)

    def _causal_mask(self) -> Node:
        """What is added to scores, ``[1, 1, T, P + T]``: nought up to the query's own place."""
        if self._mask is None:
            places = self._inputs["position_ids"]
            one, nought = (ops.constant(np.array(value, np.int32)) for value in (1, 0))
            end = ops.add(ops.reduce_max(places, integers([0, 1]), False), one)
            held = ops.unsqueeze(ops.range(nought, end, one, "i32"), integers([0, 1, 2]))
            seen = ops.less_equal(held, ops.unsqueeze(places, integers([1, 3])))
            self._mask = ops.select(seen, number(0), number(HIDDEN_SCORE))
        return self._mask

    def _turned(self, x: Node, rotary: Rotary) -> Node:
        if rotary not in self._rotations:
            # As training computes them: the product in float32.
            angles = np.arange(self._context + 1, dtype=np.float32)[:, None] * np.array(rotary.frequencies, np.float32)
            found = [self._of_places(wave, rotary.factor, len(self._rotations), angles) for wave in ("cos", "sin")]
            self._rotations[rotary] = found[0], found[1]
        cosines, sines = self._rotations[rotary]
        half = len(rotary.frequencies)
        first, second = _cut(x, (half, half))
        swapped = ops.concat([ops.multiply(second, number(-1)), first], -1)
        return ops.add(ops.multiply(x, cosines), ops.multiply(swapped, sines))

    def _of_places(self, wave: str, factor: float, index: int, angles: np.ndarray) -> Node:
        """Cosines or sines of the tokens' places, for both halves of a head: ``[B, 1, T, D]``."""
        values = (np.cos(angles) if wave == "cos" else np.sin(angles)) * np.float32(factor)
        table = self._constants.get(f"rotation:{wave}:{index}", values.astype(np.float32))
        half = ops.gather(table, self._inputs["position_ids"], integers(0))
        return ops.unsqueeze(ops.concat([half, half], -1), integers([1]))

    # Reading out
    def wanted_tokens(self, x: Node) -> Node:
        """See DecoderBuilder."""
        in_a_row = ops.reshape(x, integers([1, -1, width_of(x)]), False)
        return ops.gather(in_a_row, self._inputs["wanted"], integers(1))

    def logits(self, x: Node, weight: str) -> Node:
        """See DecoderBuilder."""
        self.vocabulary = self._products.height(weight)
        return self._products.product(x, (weight,), "logits")


def _input(name: str, rank: int) -> Node:
    node = ops.parameter(ov.PartialShape([-1] * rank), ov.Type.i32, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def _cut(x: Node, widths: tuple[int, ...]) -> tuple[Node, ...]:
    """Parts of the last axis."""
    axis = integers(len(x.get_output_partial_shape(0)) - 1)
    return tuple(ops.variadic_split(x, axis, integers(widths)).outputs())


def _activation(x: Node, kind: ActivationKind) -> Node:
    if kind in ("gelu", "gelu_tanh"):
        return ops.gelu(x, "tanh" if kind == "gelu_tanh" else "erf")
    if kind in ("relu", "tanh"):
        return ops.relu(x) if kind == "relu" else ops.tanh(x)
    if kind == "silu":
        return ops.swish(x)
    raise StudentError(f"activation {kind!r} is unknown; known are gelu, gelu_tanh, relu, tanh, silu")
