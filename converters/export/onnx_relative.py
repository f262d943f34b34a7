"""Scores that depend on how far two tokens lie apart, for any number of tokens (MPNet's buckets, XLNet's sinusoids).

All of it rests on one trick (Dai et al., "Transformer-XL", 2019, appendix B): a row of values by offset becomes a
row of values by position when every row is moved one place further than the one above, which reading the same
memory with rows one element shorter does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .onnx_values import Hidden, Integers, Scores

if TYPE_CHECKING:
    from .onnx_graph import OnnxGraph


def bias(
    graph: OnnxGraph, table: NDArray[np.float32], bucket_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> Scores:
    """``[1, H, T, T]`` with ``[0, h, i, j] = table[bucket_of(j - i), h]``."""
    by_offset = table[bucket_of(_offsets(graph.positions))].T
    heads = len(by_offset)
    row = _around_now(graph, np.ascontiguousarray(by_offset[None, :, None, :], np.float32))
    rows = graph.writer.node("Expand", [row, graph.shape_with_tokens(1, 1, 0, 1)])
    return Scores(_skewed(graph, rows, heads))


def scores(
    graph: OnnxGraph,
    query: Hidden,
    weight: NDArray[np.float32],
    basis: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    heads: int,
) -> Scores:
    """``[B, H, T, T]`` with ``[b, h, i, j] = q[b, i, h] · (basis(i - j) @ weightᵀ)[h]``; the keys are folded."""
    keys = np.asarray(basis(-_offsets(graph.positions)), np.float32) @ weight.T
    keys = keys.reshape(len(keys), heads, -1).transpose(1, 2, 0)
    near = _around_now(graph, np.ascontiguousarray(keys[None], np.float32))
    by_offset = graph.writer.node("MatMul", [graph.heads(query, heads), near])
    return Scores(_skewed(graph, by_offset, heads))


def segments(graph: OnnxGraph, query: Hidden, table: NDArray[np.float32], types: Integers, heads: int) -> Scores:
    """``[B, H, T, T]`` with ``q[b, i, h] · table[1 if types differ at i, j else 0, h]``."""
    writer = graph.writer
    rows = table.reshape(2, heads, -1)
    both = writer.constant(np.ascontiguousarray(rows.transpose(1, 2, 0)[None], np.float32))
    scores_of_both = writer.node("MatMul", [graph.heads(query, heads), both])
    same, other = writer.node_of("Split", [scores_of_both], 2, axis=3, num_outputs=2)

    def make() -> str:
        down, across = graph.reshaped(types.name, -1, 1, 0, 1), graph.reshaped(types.name, -1, 1, 1, 0)
        return writer.node("Equal", [down, across])

    equal = graph.kept(("equal", types.name), make)
    return Scores(writer.node("Where", [equal, same, other]))


def _offsets(positions: int) -> NDArray[np.int64]:
    """``j - i`` for each column stored; one more than can occur, which :func:`_skewed` needs to cut rows by."""
    return np.arange(-(positions - 1), positions + 1)


def _around_now(graph: OnnxGraph, by_offset: NDArray[np.float32]) -> str:
    """Of values by offset ``[…, 2 P]`` those that T tokens can have: ``[…, 2 T]``."""
    writer = graph.writer
    middle = writer.integers(graph.positions)

    def bounds() -> tuple[str, str]:
        first = graph.kept(("nearest",), lambda: writer.node("Sub", [middle, graph.tokens()]))
        return first, graph.kept(("farthest",), lambda: writer.node("Add", [middle, graph.tokens()]))

    return writer.node("Slice", [writer.constant(by_offset), *bounds(), writer.integers(by_offset.ndim - 1)])


def _skewed(graph: OnnxGraph, by_offset: str, heads: int) -> str:
    """``[…, H, T, 2 T]`` by offset from ``-(T - 1)`` → ``[…, H, T, T]`` with ``[i, j]`` taken at ``j - i``.

    Element ``(i, j)`` lies at ``2 T i + j - i + T - 1 = (2 T - 1) i + j + (T - 1)`` of a head's memory.
    """
    writer = graph.writer
    one, last = writer.integers(1), writer.integers(2)
    tokens = graph.tokens()
    start = graph.kept(("skew start",), lambda: writer.node("Sub", [tokens, one]))
    short = graph.kept(("skew row",), lambda: writer.node("Add", [tokens, start]))
    length = graph.kept(("skew length",), lambda: writer.node("Mul", [tokens, short]))
    end = graph.kept(("skew end",), lambda: writer.node("Add", [start, length]))
    head = writer.integers(-1, heads)
    shape = graph.kept(("skew shape", heads), lambda: writer.node("Concat", [head, tokens, short], axis=0))
    flat = writer.node("Reshape", [by_offset, graph.kept(("flat heads", heads), lambda: _flat_shape(graph, heads))])
    cut = writer.node("Slice", [flat, start, end, last])
    return writer.node("Slice", [writer.node("Reshape", [cut, shape]), writer.integers(0), tokens, writer.integers(3)])


def _flat_shape(graph: OnnxGraph, heads: int) -> str:
    """The shape ``[-1, H, 2 T T]``."""
    writer = graph.writer
    double = writer.node("Mul", [graph.tokens(), writer.integers(2)])
    area = writer.node("Mul", [double, graph.tokens()])
    return writer.node("Concat", [writer.integers(-1, heads), area], axis=0)
