"""Small parts of OpenVINO models: constants, named or not, and the moves between tokens and heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

Node: TypeAlias = Any
"""An ``openvino.Node`` with one output, or an ``openvino.Output``."""


class NamedConstants:
    """The constants of one model that carry a name, each held once however often it is asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Node] = {}

    def get(self, name: str, array: NDArray[Any] | Callable[[], NDArray[Any]]) -> Node:
        """The constant ``name``, made of ``array`` at the first call; the model keeps a copy of the data."""
        if name not in self._made:
            data = np.ascontiguousarray(array() if callable(array) else array)
            self._made[name] = ops.constant(data, shared_memory=False, name=name)
        return self._made[name]


def integers(value: int | Sequence[int] | Sequence[Sequence[int]]) -> Node:
    """A nameless int64 constant of the shape of ``value``: axes, indices, sizes."""
    return ops.constant(np.asarray(value, np.int64))


def number(value: float | np.float32) -> Node:
    """A nameless float32 scalar."""
    return ops.constant(np.asarray(value, np.float32))


def width_of(x: Node) -> int:
    """Size of the last axis."""
    port = x if isinstance(x, ov.Output) else x.output(0)
    return int(port.get_partial_shape()[-1].get_length())


def split_heads(x: Node, heads: int, order: Sequence[int] = (0, 2, 1, 3)) -> Node:
    """``[B, T, H*D]`` → ``[B, H, T, D]``, or another ``order`` of ``[B, T, H, D]``."""
    split = ops.reshape(x, integers([0, 0, heads, width_of(x) // heads]), True)
    return ops.transpose(split, integers(order))


def join_heads(x: Node) -> Node:
    """``[B, H, T, D]`` → ``[B, T, H*D]``."""
    port = x if isinstance(x, ov.Output) else x.output(0)
    shape = port.get_partial_shape()
    width = shape[1].get_length() * shape[3].get_length()
    return ops.reshape(ops.transpose(x, integers([0, 2, 1, 3])), integers([0, 0, width]), True)
