"""What OpenVINO models of decoders and encoder-decoders have in common: inputs, embeddings, linear layers, norms."""

from __future__ import annotations

import json

import openvino as ov
import openvino.opset13 as ops

from ...errors import StudentError
from ..decoder_graph import Norm
from ..graph import ActivationKind
from ..quantized_weights import QuantizedWeights
from .openvino_decoder_products import DecoderProducts
from .openvino_nodes import NamedConstants, Node, integers, number, width_of


class OpenVinoDecoderLayers:
    """The operators of :class:`~edgescribe.converters.decoder_graph.DecoderBuilder` that know no cache.

    Args:
        weights: the numbers to store.
        products: what writes the linear layers and tables; None takes those of decoders.

    Attributes:
        vocabulary: logits that the output head gives; 0 before it was written.
    """

    def __init__(self, weights: QuantizedWeights, products: DecoderProducts | None = None) -> None:
        self._products = DecoderProducts(weights) if products is None else products
        self._constants = NamedConstants()
        self._inputs: dict[str, Node] = {}
        self._outputs: list[Node] = []
        self._sinks: list[Node] = []
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
    def input(self, name: str, shape: tuple[int, ...], kind: ov.Type = ov.Type.i32) -> Node:
        """An input of the model, made at the first call; -1 stands for a dimension free at run time."""
        if name not in self._inputs:
            node = ops.parameter(ov.PartialShape(list(shape)), kind, name=name)
            node.output(0).get_tensor().set_names({name})
            self._inputs[name] = node
        return self._inputs[name]

    def output(self, name: str, value: Node) -> None:
        """See DecoderBuilder."""
        result = ops.result(value, name=f"{name}/result")
        result.output(0).get_tensor().set_names({name})
        self._outputs.append(result)

    # Embeddings
    def embedding(self, ids: Node, table: str) -> Node:
        """See DecoderBuilder."""
        return self._products.rows(ids, table)

    def scale(self, x: Node, factor: float) -> Node:
        """See DecoderBuilder."""
        return ops.multiply(x, number(factor))

    def mark_layer(self, x: Node, layer: int) -> None:
        """See DecoderBuilder."""

    # Layers
    def linear(self, x: Node, weight: str, site: str, activation: ActivationKind | None = None) -> Node:
        """See DecoderBuilder."""
        y = self._products.product(x, (weight,), site)
        if activation is None or (activation == "relu" and self._products.rectifies(site)):
            return y
        return activation_of(y, activation)

    def linears(self, x: Node, weights: tuple[str, ...], site: str) -> tuple[Node, ...]:
        """See DecoderBuilder."""
        if not self._products.can_join(weights):
            return tuple(self._products.product(x, (name,), site) for name in weights)
        widths = tuple(self._products.height(name) for name in weights)
        return cut(self._products.product(x, weights, site), widths)

    def joined_linear(self, x: Node, weight: str, widths: tuple[int, ...], site: str) -> tuple[Node, ...]:
        """See DecoderBuilder."""
        return cut(self._products.product(x, (weight,), site), widths)

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
        return ops.multiply(activation_of(gate, kind), up)

    def add(self, a: Node, b: Node) -> Node:
        """See DecoderBuilder."""
        return ops.add(a, b)

    # Reading out
    def logits(self, x: Node, weight: str) -> Node:
        """See DecoderBuilder."""
        self.vocabulary = self._products.height(weight)
        return self._products.product(x, (weight,), "logits")


def cut(x: Node, widths: tuple[int, ...]) -> tuple[Node, ...]:
    """Parts of the last axis."""
    axis = integers(len(x.get_output_partial_shape(0)) - 1)
    return tuple(ops.variadic_split(x, axis, integers(widths)).outputs())


def activation_of(x: Node, kind: ActivationKind) -> Node:
    """``kind(x)``.

    Raises:
        StudentError: there is no such activation.
    """
    if kind in ("gelu", "gelu_tanh"):
        return ops.gelu(x, "tanh" if kind == "gelu_tanh" else "erf")
    if kind in ("relu", "tanh"):
        return ops.relu(x) if kind == "relu" else ops.tanh(x)
    if kind == "silu":
        return ops.swish(x)
    raise StudentError(f"activation {kind!r} is unknown; known are gelu, gelu_tanh, relu, tanh, silu")
