"""Where a family's heads, neurons, layers, width and embeddings live, said once for pruning, training and export.

A family module (``converters/families/<model_type>.py``) holds one :class:`Anatomy`. Nothing else in the
project knows a family's names.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import StudentError
from .decoder_graph import Rotary
from .encoder_decoder_graph import SourceAndTarget

Task = Literal["classify", "tag", "embed", "generate", "summarize"]
Role = Literal[
    "vocabulary", "positions", "types", "embedding", "hidden", "heads", "head", "head_width", "kv_heads", "sinusoids",
    "neurons", "labels", "fixed", "joined", "decoder_heads", "decoder_head", "cross_heads", "decoder_neurons",
]  # fmt: skip
"""What an axis counts.

``heads`` counts heads x head width (heads of one layer lie one after the other), ``head`` heads alone and
``head_width`` the width of one; ``kv_heads`` counts key/value heads x head width, where fewer than there are heads
may be shared by groups of these; ``joined`` queries, keys and values side by side (GPT-2's ``c_attn``).
``sinusoids`` counts sine waves, as many as the hidden width, whose frequencies
depend on that width (XLNet's relative positions). ``decoder_heads``, ``decoder_head`` and ``decoder_neurons`` are those
of an encoder-decoder's decoder, and ``cross_heads`` of its attention to the source, which are as many as
``decoder_heads``. Where a family's configuration has no number of its own for them (T5) there are as many in both
halves.
"""

UnitKind = Literal["heads", "decoder_heads", "cross_heads", "neurons", "decoder_neurons"]
"""What can be pruned by the unit in each layer: of an encoder-decoder's decoder its attention to the source apart."""

HEAD_KINDS: tuple[UnitKind, ...] = ("heads", "decoder_heads", "cross_heads")

_KIND_OF: Mapping[Role, UnitKind] = {
    "heads": "heads",
    "head": "heads",
    "kv_heads": "heads",
    "joined": "heads",
    "decoder_heads": "decoder_heads",
    "decoder_head": "decoder_heads",
    "cross_heads": "cross_heads",
    "neurons": "neurons",
    "decoder_neurons": "decoder_neurons",
}

ENCODERS = ("albert", "bert", "distilbert", "electra", "mpnet", "roberta", "xlnet")
DECODERS = ("gemma", "gpt2", "llama", "qwen2", "qwen3")
ENCODER_DECODERS = ("bart", "marian", "mt5", "t5")
FAMILIES = ENCODERS + DECODERS + ENCODER_DECODERS


@dataclass(frozen=True)
class Shape:
    """A student's sizes, read from its configuration.

    ``embedding`` is the width of the embedding tables (equal to ``hidden`` but in ALBERT and ELECTRA);
    ``activation`` one of :data:`~edgescribe.converters.graph.ActivationKind`; ``position_offset`` the row of the
    first token's position (RoBERTa and MPNet: padding index + 1); ``variant`` holds words for whatever else in a
    configuration changes the family's program (XLNet's kinds of summary).
    Of decoders: ``kv_heads`` the number of key/value heads, ``width_of_head`` the width of one head where the
    configuration gives it apart from ``hidden / heads``, ``rotary`` their rotary positions, ``tied`` whether the
    embedding table is the output head too.
    Of encoder-decoders: ``layers``, ``heads`` and ``neurons`` are the encoder's, ``decoder_layers``,
    ``decoder_heads`` and ``decoder_neurons`` the decoder's; ``relative`` holds the number of buckets and the largest
    distance of relative positions (T5).
    """

    layers: int
    hidden: int
    heads: int
    neurons: int
    vocabulary: int
    positions: int
    embedding: int
    labels: int
    activation: Any
    eps: float
    position_offset: int = 0
    variant: tuple[str, ...] = ()
    kv_heads: int = 0
    width_of_head: int = 0
    rotary: Rotary | None = None
    tied: bool = False
    decoder_layers: int = 0
    decoder_heads: int = 0
    decoder_neurons: int = 0
    relative: tuple[int, int] | None = None

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width_of_head or self.hidden // self.heads

    @property
    def decoder_head_width(self) -> int:
        """Width of one head of an encoder-decoder's decoder."""
        return self.width_of_head or self.hidden // max(1, self.decoder_heads)

    @property
    def group(self) -> int:
        """How many heads share one key/value head; only all of them together can leave."""
        return self.heads // self.kv_heads if self.kv_heads else 1


@dataclass(frozen=True)
class Parameter:
    """One checkpoint tensor, or one for each layer: its name (with ``{layer}``, of an encoder-decoder's decoder
    ``{decoder_layer}``) and what each of its axes counts.

    ``matrix`` tells how a linear layer's weight is stored: ``out_in`` (torch's), ``in_out`` (GPT-2's), or for XLNet
    ``in_heads`` (``[in, H, D]``) and ``out_heads`` (``[out, H, D]``).
    ``kind``: ``matrix`` and ``bias`` of linear layers, ``table`` of embeddings, ``norm`` (gain and bias of a layer
    norm), ``vector`` for anything else. ``when`` tells from the sizes whether a checkpoint has it; None: always.
    """

    name: str
    axes: tuple[Role, ...]
    kind: Literal["matrix", "bias", "table", "norm", "vector"]
    matrix: Literal["out_in", "in_out", "in_heads", "out_heads"] = "out_in"
    when: Callable[[Shape], bool] | None = None


@dataclass(frozen=True)
class Anatomy:
    """A family.

    Attributes:
        model_type: the checkpoint's ``model_type``.
        parameters: every tensor of the body, names without the body's prefix.
        heads_of: the tensors of the task heads by task, full names.
        prefix: what the body's names begin with in a task checkpoint (``bert.``).
        config_fields: the configuration's field for each role (``{"hidden": "hidden_size", …}``) and for ``layers``.
        shape: reads a :class:`Shape` from a configuration.
        forward: writes the forward pass of one task with a graph builder.
        shared_layers: all layers use the weights of layer 0 (ALBERT).
        architectures: transformers' class name by task.
        layer_prefix: what the names of one layer begin with, with ``{layer}``.
        padding_side: where padding goes.
        projection: how the name of the weight ends that projects embeddings to the hidden width, if there can be one.
        fixed_ids: token ids whose numbers transformers' code has built in (MPNet: padding is 1); no token below them
            leaves the vocabulary.
        sinusoids: for a family with axes of that role, maps a hidden width to the function from offsets ``[n]`` to
            sinusoids ``[n, width]``.
        ignored: patterns of tensors that play no part in the tasks served here.
        kind: ``encoder``, ``decoder`` or ``encoder-decoder``: whose operators ``forward`` is written in.
        halves: the two programs of an encoder-decoder; ``forward`` then runs one after the other.
        decoder_prefix: ``layer_prefix`` of an encoder-decoder's decoder, with ``{decoder_layer}``.
        settle: of a configuration and weights as stored, both as the family's code would understand them (ties and
            scales that transformers decides by which tensors there are).
        copies: of sizes, names under which transformers wants a tensor once more, and that tensor's name.
        rows_before: rows of the table of positions that the configuration does not count.
        default_tokens: longest input of a checkpoint whose tokenizer sets no limit; None: as many as have positions.
        width_power: of a tensor's name and sizes, by which power of the root of the hidden width the tensor must grow
            with that width, since the program has the width in it; 0 for nearly all.
        scales_embeddings: embeddings are multiplied by the root of the hidden width (Gemma).
        own_head_width: the configuration has the width of a head, so that heads and hidden width are pruned apart.
        heads_divide_hidden: transformers takes only a hidden width that the number of heads divides.
    """

    model_type: str
    parameters: tuple[Parameter, ...]
    heads_of: Mapping[Task, tuple[Parameter, ...]]
    prefix: str
    config_fields: Mapping[str, str]
    shape: Callable[[Mapping[str, Any]], Shape]
    forward: Callable[[Any, Shape, Task], None]
    architectures: Mapping[Task, str]
    layer_prefix: str
    shared_layers: bool = False
    padding_side: Literal["left", "right"] = "right"
    projection: str | None = None
    fixed_ids: tuple[int, ...] = ()
    sinusoids: Callable[[int], Callable[[NDArray[np.int64]], NDArray[np.float32]]] | None = None
    ignored: tuple[str, ...] = field(default=())
    kind: Literal["encoder", "decoder", "encoder-decoder"] = "encoder"
    scales_embeddings: bool = False
    own_head_width: bool = False
    heads_divide_hidden: bool = True
    halves: SourceAndTarget | None = None
    decoder_prefix: str | None = None
    settle: Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]] | None = None
    copies: Callable[[Shape], Mapping[str, str]] | None = None
    rows_before: int = 0
    width_power: Callable[[str, Shape], int] | None = None
    default_tokens: int | None = None

    def parameters_of(self, task: Task, layers: int, decoder_layers: int = 0) -> dict[str, Parameter]:
        """Every tensor that a student can have by its full checkpoint name, layers written out for all layers."""
        prefix = "" if task == "embed" else self.prefix
        found: dict[str, Parameter] = {}
        for parameter in self.parameters:
            in_decoder = "{decoder_layer}" in parameter.name
            count = decoder_layers if in_decoder else layers if "{layer}" in parameter.name else 1
            for layer in range(count):
                found[prefix + parameter.name.format(layer=layer, decoder_layer=layer)] = parameter
        for parameter in self.heads_of.get(task, ()):
            found[parameter.name] = parameter
        return found

    def layout(self, task: Task, shape: Shape) -> dict[str, Parameter]:
        """The tensors that a student of these sizes has, by full checkpoint name."""
        found = self.parameters_of(task, shape.layers, shape.decoder_layers)
        return {name: each for name, each in found.items() if each.when is None or each.when(shape)}

    @staticmethod
    def unit_kind(role: Role) -> UnitKind | None:
        """The kind of units that an axis counts; None where it counts something else."""
        return _KIND_OF.get(role)

    def unit_counts(self, shape: Shape) -> dict[UnitKind, tuple[int, int]]:
        """Layers, and units of each layer, by kind; heads that share a key/value head count as one."""
        layers = 1 if self.shared_layers else shape.layers
        counts: dict[UnitKind, tuple[int, int]] = {
            "heads": (layers, shape.heads // shape.group),
            "neurons": (layers, shape.neurons),
        }
        if self.kind == "encoder-decoder":
            counts["decoder_heads"] = counts["cross_heads"] = (shape.decoder_layers, shape.decoder_heads)
            counts["decoder_neurons"] = (shape.decoder_layers, shape.decoder_neurons)
        return counts

    @property
    def tied_kinds(self) -> frozenset[UnitKind]:
        """Kinds of units whose number is the same unit in all layers (a bias for each head, which all layers use)."""
        if self.shared_layers:
            return frozenset()
        found = {_KIND_OF.get(role) for each in self.parameters if "layer}" not in each.name for role in each.axes}
        return frozenset(kind for kind in found if kind is not None)

    def layer_number(self, name: str) -> int | None:
        """The layer of its half that a tensor of this full name belongs to.

        None outside of layers or where they share one.
        """
        bare = name.removeprefix(self.prefix)
        if any(bare == each.name for each in self.parameters if "layer}" not in each.name):
            return None
        for prefix in (self.layer_prefix, self.decoder_prefix):
            number = re.sub(r"\\\{(decoder_)?layer\\\}", r"(\\d+)", re.escape(prefix or "-"))
            found = re.search(rf"(?:^|\.){number}", name)
            if found is not None and found.groups():
                return int(found[1])
        return None

    def is_in_decoder(self, name: str) -> bool:
        """Whether a tensor of this full name is of a layer of an encoder-decoder's decoder."""
        start = (self.decoder_prefix or "-").split("{")[0]
        return self.layer_number(name) is not None and name.removeprefix(self.prefix).startswith(start)

    def embedding_follows_hidden(self, names: Mapping[str, Any]) -> bool:
        """Whether the embedding tables lie right on the hidden width, without a projection (``names``: the weights)."""
        return self.projection is None or not any(name.endswith(self.projection) for name in names)

    def is_ignored(self, name: str) -> bool:
        """Whether a checkpoint tensor plays no part in the tasks served here (position id buffers, poolers, heads)."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def anatomy_of(model_type: str) -> Anatomy:
    """The anatomy of a family.

    Raises:
        StudentError: the family is not described; the message says what to write.
    """
    if model_type not in FAMILIES:
        raise StudentError(
            f"the family {model_type!r} is not described; these are: {', '.join(FAMILIES)}. To add it, write "
            f"converters/families/{model_type}.py with an Anatomy (its tensors, their axes and its forward pass; "
            "bert.py is the example) and name it in converters/anatomy.py"
        )
    module = importlib.import_module(f".families.{model_type}", __package__)
    anatomy: Anatomy = module.ANATOMY
    return anatomy
