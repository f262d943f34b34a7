"""What an operator of :class:`~.onnx_graph.OnnxGraph` returns: a tensor as it was made, other forms on demand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..quantized_weights import Grid

Layout = Literal["tokens", "text", "places", "vector"]
"""How a hidden value lies in memory:

- ``tokens`` ``[B * T, W]``: every token of every text. Two axes, because the int8 product takes just these and
  ONNX Runtime's fused Add + LayerNormalization, several times slower than the two nodes, leaves them alone;
- ``text`` ``[B, W]``: one token of each text, or none any more;
- ``places`` ``[T, W]``: the same for every text;
- ``vector`` ``[1, W]``: the same for every token.
"""


@dataclass
class Joined:
    """The results of linear layers that ran as one product, side by side: ``[rows, parts * width]``.

    ``rows`` are the parts; ``cubes`` name them as ``[B, T, width]``, in the form that ``value`` was made in.
    """

    parts: int
    value: Hidden
    rows: list[Hidden] = field(default_factory=list)
    cubes: list[str] = field(default_factory=list)


@dataclass
class Hidden:
    """A hidden value of ``width`` columns; at least one of ``real``, ``integers`` and ``joined`` is set.

    ``real`` names it in float32. ``integers`` names its uint8 form by grid (the grid's zero point + 128); where
    ``real`` is None, ``grid`` is the one that it was computed on and the float form is made from it when wanted.
    ``dynamic`` names its integers, scale and zero point taken while running.
    ``joined`` and ``part`` tell that it is one part of a product whose parts have not been cut out yet.
    """

    layout: Layout
    width: int
    real: str | None = None
    integers: dict[Grid, str] = field(default_factory=dict)
    grid: Grid | None = None
    dynamic: tuple[str, str, str] | None = None
    joined: Joined | None = None
    part: int = 0


@dataclass(frozen=True)
class Integers:
    """An int32 input ``[B, T]``."""

    name: str


@dataclass(frozen=True)
class Scores:
    """Something float32 for each pair of tokens: ``[B or 1, H, T, T]``."""

    name: str
