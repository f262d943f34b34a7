"""Runs a family's program in torch: in float, or with fake quantisation on the grid that is exported.

This is the model that is trained and the reference that every exporter is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import nn

from .anatomy import Parameter
from .fake_quantize import DynamicQuantizer, StaticQuantizer, fake_quantize_rows
from .graph import ActivationKind
from .student import Student

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "tanh": torch.tanh,
    "silu": functional.silu,
}


@dataclass
class Recording:
    """What distillation looks at: ``hidden`` ``[B, T, W]`` after each layer (index 0: the embeddings), and
    ``attention`` ``[B, T, T]``, what each token of each layer attends to, averaged over heads (unless
    ``takes_attention`` is off)."""

    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    attention: list[torch.Tensor] = field(default_factory=list)
    takes_attention: bool = True


class NormStatistics:
    """Per unit, the mean and mean square of what each layer norm gives before its gain and bias, over real tokens.

    In float64: a norm's gain is corrected by it for good.
    """

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.squares: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.centred: dict[str, bool] = {}
        self.offsets: dict[str, float] = {}

    @torch.no_grad()
    def add(
        self, norm: str, x: torch.Tensor, eps: float, mask: torch.Tensor, centred: bool = True, offset: float = 0.0
    ) -> None:
        """Take in ``x`` ``[B, T, W]``, which enters the norm.

        ``centred``: a layer norm, else an RMS norm, whose gain is ``offset`` more than its weight.
        """
        self.centred[norm], self.offsets[norm] = centred, offset
        normalize = functional.layer_norm if centred else functional.rms_norm
        normal = normalize(x.double(), (x.shape[-1],), eps=eps)
        rows = normal[mask.bool()] if normal.shape[:2] == mask.shape else normal.reshape(-1, x.shape[-1])
        nothing = rows.new_zeros(x.shape[-1])
        self.sums[norm] = self.sums.get(norm, nothing) + rows.sum(0)
        self.squares[norm] = self.squares.get(norm, nothing) + rows.square().sum(0)
        self.counts[norm] = self.counts.get(norm, 0) + rows.shape[0]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """``x`` in float32; a float64 tensor as it is, so that a student in double precision is computed in it."""
    return x if x.dtype == torch.float64 else x.float()


def as_matrix(weight: torch.Tensor, parameter: Parameter) -> torch.Tensor:
    """A linear layer's weight as ``[out, in]``, whatever the checkpoint's layout."""
    if parameter.matrix == "in_out":
        return weight.T
    if parameter.matrix == "in_heads":
        return weight.reshape(weight.shape[0], -1).T
    if parameter.matrix == "out_heads":
        return weight.reshape(weight.shape[0], -1)
    return weight


class TorchGraph(nn.Module):
    """A student's program over torch tensors; implements :class:`~edgescribe.converters.graph.GraphBuilder`.

    Args:
        student: weights (copied) and family.
        precision: ``fp32``, ``w8a8-static`` or ``w8a8-dynamic``.
        dropout: probability on what each layer adds to its residual, while training.
    """

    def __init__(self, student: Student, precision: str = "fp32", dropout: float = 0.0) -> None:
        super().__init__()
        if precision not in self.precisions:
            raise ValueError(f"no fake quantisation for {precision!r}")
        self.student, self.precision, self.dropout = student, precision, dropout
        self.anatomy, self.shape = student.anatomy, student.shape
        self.layout = self.anatomy.layout(student.task, self.shape)
        self.weights = nn.ParameterDict(
            {
                self._key(name): nn.Parameter(at_least_float32(tensor.detach().clone()))
                for name, tensor in student.state.items()
            }
        )
        self.inputs, self.outputs = nn.ModuleDict(), nn.ModuleDict()
        self.folded: set[str] = set()
        self.norm_statistics: NormStatistics | None = None
        self.whole_layers = False
        self._recording: Recording | None = None
        self._feeds: dict[str, torch.Tensor] = {}
        self._results: dict[str, torch.Tensor] = {}
        self._penalty: torch.Tensor | None = None
        if precision != "fp32":
            self._make_quantizers()

    # ``folded``: matrices that ``relative_scores`` turned into constants; they are not quantised.
    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")

    def _make_quantizers(self) -> None:
        """One dry run on a few tokens finds the sites; then each has its quantizers, known to the optimiser."""
        self._creating = True
        with torch.no_grad():
            self.run(self._few_tokens())
        for quantizer in [*self.inputs.values(), *self.outputs.values()]:
            if isinstance(quantizer, StaticQuantizer):
                quantizer._sample = []
        self._creating = False

    @staticmethod
    def _few_tokens() -> dict[str, torch.Tensor]:
        ids = torch.zeros((1, 4), dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids}

    _creating = False
    precisions: tuple[str, ...] = ("fp32", "w8a8-static", "w8a8-dynamic")

    # Running
    def run(self, feeds: Mapping[str, torch.Tensor], recording: Recording | None = None) -> dict[str, torch.Tensor]:
        """Outputs by name (``logits``, ``embedding``) for integer feeds ``[B, T]``.

        With a ``recording``, whole layers are computed and written into it.
        """
        self._feeds, self._results, self._penalty = dict(feeds), {}, None
        self._recording, self.whole_layers = recording, recording is not None
        self.anatomy.forward(self, self.shape, self.student.task)
        results, self._results, self._feeds, self._recording, self._penalty = self._results, {}, {}, None, None
        return results

    def forward(
        self, feeds: Mapping[str, torch.Tensor], recording: Recording | None = None
    ) -> dict[str, torch.Tensor]:
        """See :meth:`run`."""
        return self.run(feeds, recording)

    def state(self) -> dict[str, torch.Tensor]:
        """Weights by checkpoint name, detached copies (float32, unless the student is in float64)."""
        return {name: self.weight(name).detach().clone() for name in self.student.state}

    def weight(self, name: str) -> nn.Parameter:
        """The parameter of a full checkpoint name."""
        weight: nn.Parameter = self.weights[self._key(name)]
        return weight

    def quantizer_state(self) -> dict[str, torch.Tensor]:
        """The activation grids as tensors by name, for a checkpoint."""
        parts = ("inputs.", "outputs.", "log_scales.")
        return {name: value for name, value in self.state_dict().items() if name.startswith(parts)}

    def load_quantizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take grids from :meth:`quantizer_state`.

        Raises:
            KeyError: grids that this graph does not have, or lacks.
        """
        wanted = self.quantizer_state()
        if set(wanted) != set(state):
            raise KeyError(f"grids {sorted(set(wanted) ^ set(state))[:3]}")
        self.load_state_dict(dict(state), strict=False)

    def start_quantizers(self) -> None:
        """End calibration: every static grid is set from what it observed."""
        for quantizer in [*self.inputs.values(), *self.outputs.values()]:
            if isinstance(quantizer, StaticQuantizer):
                quantizer.start()

    # Inputs and outputs
    def token_ids(self) -> torch.Tensor:
        """See GraphBuilder."""
        return self._feeds["input_ids"]

    def token_mask(self) -> torch.Tensor:
        """See GraphBuilder."""
        return self._feeds["attention_mask"]

    def token_types(self) -> torch.Tensor:
        """See GraphBuilder."""
        return self._feeds["token_type_ids"]

    def output(self, name: str, value: torch.Tensor) -> None:
        """See GraphBuilder."""
        self._results[name] = at_least_float32(value)

    # Embeddings
    def _rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.precision == "fp32" else self._on_grid(rows)

    def _on_grid(self, weight: torch.Tensor, names: tuple[str, ...] = ()) -> torch.Tensor:
        """A matrix (those of ``names``, one below the other) or rows of a table, rounded to the precision's grid."""
        return fake_quantize_rows(weight)

    def embedding(self, ids: torch.Tensor, table: str) -> torch.Tensor:
        """See GraphBuilder."""
        return self._rows(functional.embedding(ids, self.weight(f"{table}.weight")))

    def position_embedding(self, table: str, start: int = 0) -> torch.Tensor:
        """See GraphBuilder."""
        tokens = self._feeds["input_ids"].shape[1]
        return self._rows(self.weight(f"{table}.weight")[start : start + tokens])[None]

    def table_row(self, table: str, row: int) -> torch.Tensor:
        """See GraphBuilder."""
        return self._rows(self.weight(f"{table}.weight")[row : row + 1])[None]

    def mark_layer(self, x: torch.Tensor, layer: int) -> None:
        """See GraphBuilder."""
        if self._recording is not None:
            self._recording.hidden[layer] = x

    # Layers
    def linear(self, x: torch.Tensor, weight: str, site: str, activation: ActivationKind | None = None) -> torch.Tensor:
        """See GraphBuilder."""
        return self._product(x, (weight,), site, activation)

    def linears(self, x: torch.Tensor, weights: tuple[str, ...], site: str) -> tuple[torch.Tensor, ...]:
        """See GraphBuilder."""
        sizes = [self._matrix(name).shape[0] for name in weights]
        return torch.split(self._product(x, weights, site, None), sizes, dim=-1)

    def _matrix(self, name: str) -> torch.Tensor:
        """``[out, in]`` of a linear layer, found with or without ``.weight`` (XLNet's are bare parameters)."""
        full = name if name in self.layout else f"{name}.weight"
        return as_matrix(self.weight(full), self.layout[full])

    def _bias(self, name: str) -> torch.Tensor | None:
        bias: torch.Tensor | None = self.weights.get(self._key(f"{name}.bias"))
        return bias

    def _product(
        self, x: torch.Tensor, names: tuple[str, ...], site: str, activation: ActivationKind | None
    ) -> torch.Tensor:
        matrices = [self._matrix(name) for name in names]
        biases = [self._bias(name) for name in names]
        matrix = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
        bias: torch.Tensor | None = None
        if any(part is not None for part in biases):
            parts = [
                rows.new_zeros(rows.shape[0]) if part is None else part
                for part, rows in zip(biases, matrices, strict=True)
            ]
            bias = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.precision == "fp32":
            y = functional.linear(x, matrix, bias)
            return y if activation is None else ACTIVATIONS[activation](y)
        self._look_at(names, x)
        key = self._key(site)
        if self._creating and key not in self.inputs:
            static = self.precision == "w8a8-static"
            self.inputs[key] = StaticQuantizer() if static else DynamicQuantizer()
            if static:
                self.outputs[key] = StaticQuantizer(rectified=activation == "relu")
        y = functional.linear(self.inputs[key](x), self._on_grid(matrix, names), bias)
        if activation == "relu":
            y = functional.relu(y)
        if key in self.outputs:
            y = self.outputs[key](y)
        return y if activation in (None, "relu") else ACTIVATIONS[activation](y)

    def _look_at(self, names: tuple[str, ...], x: torch.Tensor) -> None:
        """Told what enters the product of ``names`` before it is rounded; for those who calibrate by it."""

    def layer_norm(
        self, x: torch.Tensor, norm: str, eps: float, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See GraphBuilder."""
        if residual is not None:
            x = functional.dropout(x, self.dropout, self.training) + residual
        if self.norm_statistics is not None:
            self.norm_statistics.add(norm, x, eps, self.token_mask())
        gain, bias = self.weight(f"{norm}.weight"), self.weight(f"{norm}.bias")
        return functional.layer_norm(x, (x.shape[-1],), gain, bias, eps)

    def activation(self, x: torch.Tensor, kind: ActivationKind) -> torch.Tensor:
        """See GraphBuilder."""
        return ACTIVATIONS[kind](x)

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """See GraphBuilder."""
        return a + b

    def add_vector(self, x: torch.Tensor, vector: str) -> torch.Tensor:
        """See GraphBuilder."""
        return x + self.weight(vector).reshape(-1)

    def attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        heads: int,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """See GraphBuilder."""
        q, k, v = (self._split_heads(part, heads) for part in (query, key, value))
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if self._penalty is None:
            self._penalty = ((1 - mask.to(torch.float32)) * -1e4)[:, None, None, :]
        penalty = self._penalty if bias is None else self._penalty + bias * scale
        if self._recording is None or not self._recording.takes_attention:
            context = functional.scaled_dot_product_attention(q, k, v, penalty.to(q.dtype), scale=scale)
        else:
            shares = ((q * scale) @ k.transpose(-1, -2) + penalty).softmax(-1)
            self._recording.attention.append(shares.mean(1))
            context = shares.to(v.dtype) @ v
        return context.transpose(1, 2).reshape(query.shape[0], query.shape[1], -1)

    @staticmethod
    def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    # Positions relative to each other
    def _offsets(self) -> torch.Tensor:
        """``j - i`` for every pair of tokens: ``[T, T]``."""
        places = torch.arange(self._feeds["input_ids"].shape[1])
        return places[None, :] - places[:, None]

    def relative_bias(
        self, table: str, bucket_of: Callable[[NDArray[np.int64]], NDArray[np.int64]], factor: float = 1.0
    ) -> torch.Tensor:
        """See GraphBuilder."""
        buckets = torch.from_numpy(bucket_of(self._offsets().numpy()))
        return self.weight(table)[buckets].permute(2, 0, 1)[None] * factor

    def relative_scores(
        self, query: torch.Tensor, weight: str, basis: Callable[[NDArray[np.int64]], NDArray[np.float32]], heads: int
    ) -> torch.Tensor:
        """See GraphBuilder."""
        self.folded.add(weight)
        tokens = query.shape[1]
        span = np.arange(-(tokens - 1), tokens)
        matrix = self._matrix(weight)
        keys = torch.from_numpy(basis(span)).to(matrix.dtype) @ matrix.T
        keys = keys.reshape(len(span), heads, -1)
        scores = torch.einsum("bhid,nhd->bhin", self._split_heads(query, heads), keys)
        index = (tokens - 1 - self._offsets()).expand(scores.shape[0], heads, tokens, tokens)
        return scores.gather(-1, index)

    def segment_scores(self, query: torch.Tensor, table: str, types: torch.Tensor, heads: int) -> torch.Tensor:
        """See GraphBuilder."""
        rows = self.weight(table).reshape(2, heads, -1)
        scores = torch.einsum("bhid,shd->bhis", self._split_heads(query, heads), rows)
        differ = (types[:, :, None] != types[:, None, :])[:, None]
        return torch.where(differ, scores[..., 1:], scores[..., :1])

    # Reading out
    def token(self, x: torch.Tensor, index: Literal[0, -1]) -> torch.Tensor:
        """See GraphBuilder."""
        return x[:, :1] if index == 0 else x[:, -1:]

    def squeeze_token(self, x: torch.Tensor) -> torch.Tensor:
        """See GraphBuilder."""
        return x.squeeze(1)

    def mean_pool(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See GraphBuilder."""
        kept = mask.to(x.dtype)[:, :, None]
        return (x * kept).sum(1) / kept.sum(1).clamp(min=1.0)

    def l2_normalize(self, x: torch.Tensor) -> torch.Tensor:
        """See GraphBuilder."""
        return functional.normalize(x, dim=-1, eps=1e-12)
