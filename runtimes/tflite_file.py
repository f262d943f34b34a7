"""Reads what a ``.tflite`` file holds without an engine, for the checks that an engine does not make itself.

The format is a flatbuffer by the schema of TensorFlow Lite (version 3): a table starts with the distance back
to its vtable, which gives the place of each field by its number in the schema, or 0 for a default. Every
offset is checked against the file's size, so that a damaged file gives an error and nothing else.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError

FLOAT32, INT32, UINT8, INT8, INT4 = 0, 2, 3, 9, 17
_IDENTIFIER = b"TFL3"
_FULLY_CONNECTED = 9
_PRODUCTS = {3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", _FULLY_CONNECTED: "FULLY_CONNECTED", 126: "BATCH_MATMUL"}
_MOST_TABLES = 1_000_000


@dataclass(frozen=True)
class TfliteTensor:
    """A tensor's type (the schema's number), whether its content is in the file, and its kind of quantisation."""

    name: str
    type: int
    constant: bool
    custom_quantization: bool


@dataclass(frozen=True)
class TfliteOperator:
    """An operator's builtin code (the schema's number) with its inputs; an absent optional input is None."""

    code: int
    inputs: tuple[TfliteTensor | None, ...]


@dataclass(frozen=True)
class SignaturePlaces:
    """Positions in the file: a signature's table and its subgraph's, and the vectors that list all of either.

    ``index`` is the subgraph's number among the file's, ``index_at`` where it is written, or 0 where it is left out
    since it is 0.
    """

    table: int
    graph: int
    index: int
    index_at: int
    signatures: int
    graphs: int


@dataclass(frozen=True)
class TfliteSignature:
    """A signature's inputs and outputs: the schema's type number and the shape by name; and where it lies."""

    inputs: dict[str, tuple[int, tuple[int, ...]]]
    outputs: dict[str, tuple[int, tuple[int, ...]]]
    places: SignaturePlaces


def check_tflite(path: Path) -> None:
    """Check that the file is a ``.tflite`` whose tables and buffers lie within it.

    Raises:
        BundleError: it is not, or it was damaged or cut off.
    """
    read_signatures(path)


def read_signatures(path: Path) -> dict[str, TfliteSignature]:
    """The signatures by key, after a check that the tables and buffers lie within the file.

    Raises:
        BundleError: the file is not a ``.tflite``, or it is damaged or was cut off.
    """
    with _File(path) as file:
        file.buffer_sizes()
        return file.signatures()


def with_only(kept: Iterable[TfliteSignature]) -> list[tuple[int, bytes]]:
    """What to write at which positions of the file, in place, to leave these signatures and their subgraphs alone."""
    places = sorted((signature.places for signature in kept), key=lambda place: place.index)
    graphs = {place.index: place.graph for place in places}
    order = list(graphs)
    written = [
        _table_vector(places[0].graphs, list(graphs.values())),
        _table_vector(places[0].signatures, [place.table for place in places]),
    ]
    for place in places:
        if place.index_at:
            written.append((place.index_at, struct.pack("<I", order.index(place.index))))
    return written


def _table_vector(start: int, tables: list[int]) -> tuple[int, bytes]:
    """A vector is its length and then distances, each from its own place to a table."""
    distances = [table - (start + 4 * number) for number, table in enumerate(tables, 1)]
    return start, struct.pack(f"<{1 + len(tables)}I", len(tables), *distances)


def read_operators(path: Path) -> tuple[TfliteOperator, ...]:
    """All operators of all subgraphs, in the file's order.

    Raises:
        BundleError: the file is not a ``.tflite`` or is damaged.
    """
    with _File(path) as file:
        return file.operators()


def float_activation_products(operators: tuple[TfliteOperator, ...]) -> tuple[str, ...]:
    """Names of operators that multiply float activations by constant integer weights (``w8a8-dynamic``, int4)."""
    return tuple(
        f"{_PRODUCTS[operator.code]} with weight {weight.name!r}"
        for operator in operators
        if operator.code in _PRODUCTS and len(operator.inputs) > 1
        for x, weight in [operator.inputs[:2]]
        if x is not None and weight is not None
        and x.type == FLOAT32 and weight.constant and weight.type in (UINT8, INT8, INT4)
    )


def small_or_blockwise_tensors(operators: tuple[TfliteOperator, ...]) -> tuple[str, ...]:
    """Names of tensors of types later than TensorFlow Lite 2.14 (int4 and on), or quantised in blocks."""
    tensors = [tensor for operator in operators for tensor in operator.inputs if tensor is not None]
    return tuple(dict.fromkeys(t.name for t in tensors if t.type >= INT4 or t.custom_quantization))


class _File:
    """The flatbuffer; positions are bytes from the file's start, 0 stands for a field that is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                # Mapped, so that the constants, nearly all of the file, never come into memory.
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read: {error}; check the bundle's folder") from error
        if self._data[4:8] != _IDENTIFIER:
            self._data.close()
            raise BundleError(f"{path} is not a LiteRT model (no {_IDENTIFIER.decode()} mark); copy the bundle anew")
        self._model = self._number("<I", 0)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def buffer_sizes(self) -> list[int]:
        """Bytes of each buffer of constants."""
        sizes = []
        for table in self._tables(self._model, 4):
            outside, size = self._scalar(table, 1, "<Q"), self._scalar(table, 2, "<Q")
            if outside > 1:
                if outside + size > len(self._data):
                    raise self._damaged()
                sizes.append(size)
            else:
                sizes.append(self._vector(table, 0, 1)[1])
        return sizes

    def operators(self) -> tuple[TfliteOperator, ...]:
        sizes = self.buffer_sizes()
        codes = []
        for table in self._tables(self._model, 1):
            codes.append(max(self._scalar(table, 0, "<b"), self._scalar(table, 3, "<i")))
        found: list[TfliteOperator] = []
        for graph in self._tables(self._model, 2):
            tensors = [self._tensor(table, sizes) for table in self._tables(graph, 0)]
            for table in self._tables(graph, 3):
                start, count = self._vector(table, 1, 4)
                picks = struct.unpack_from(f"<{count}i", self._data, start) if count else ()
                code = self._scalar(table, 0, "<I")
                if code >= len(codes) or any(pick >= len(tensors) for pick in picks):
                    raise self._damaged()
                found.append(TfliteOperator(codes[code], tuple(tensors[p] if p >= 0 else None for p in picks)))
        return tuple(found)

    def signatures(self) -> dict[str, TfliteSignature]:
        graphs, signatures = self._tables(self._model, 2), self._tables(self._model, 7)
        graphs_at, signatures_at = self._child(self._model, 2), self._child(self._model, 7)
        found = {}
        for table in signatures:
            index_at = self._place(table, 4)
            index = self._number("<I", index_at) if index_at else 0
            if index >= len(graphs):
                raise self._damaged()
            tensors = self._tables(graphs[index], 0)
            inputs, outputs = (self._tensor_map(table, field, tensors) for field in (0, 1))
            places = SignaturePlaces(table, graphs[index], index, index_at, signatures_at, graphs_at)
            found[self._text(table, 2)] = TfliteSignature(inputs, outputs, places)
        return found

    def _tensor_map(self, signature: int, field: int, tensors: list[int]) -> dict[str, tuple[int, tuple[int, ...]]]:
        found = {}
        for entry in self._tables(signature, field):
            index = self._scalar(entry, 1, "<I")
            if index >= len(tensors):
                raise self._damaged()
            start, count = self._vector(tensors[index], 0, 4)
            shape = struct.unpack_from(f"<{count}i", self._data, start) if count else ()
            found[self._text(entry, 0)] = (self._scalar(tensors[index], 1, "<b"), tuple(shape))
        return found

    def _text(self, table: int, field: int) -> str:
        start, count = self._vector(table, field, 1)
        return self._data[start : start + count].decode("utf-8", "replace")

    def _tensor(self, table: int, sizes: list[int]) -> TfliteTensor:
        buffer = self._scalar(table, 2, "<I")
        if buffer >= len(sizes):
            raise self._damaged()
        grid = self._child(table, 4)
        custom = bool(grid) and self._scalar(grid, 4, "<B") != 0
        return TfliteTensor(self._text(table, 3), self._scalar(table, 1, "<b"), sizes[buffer] > 0, custom)

    def _tables(self, table: int, field: int) -> list[int]:
        start, count = self._vector(table, field, 4)
        if count > _MOST_TABLES:
            raise self._damaged()
        return [start + 4 * i + self._number("<I", start + 4 * i) for i in range(count)]

    def _vector(self, table: int, field: int, item: int) -> tuple[int, int]:
        """Where the items of a vector start, and how many there are."""
        start = self._child(table, field)
        if not start:
            return 0, 0
        count = self._number("<I", start)
        if start + 4 + count * item > len(self._data):
            raise self._damaged()
        return start + 4, count

    def _child(self, table: int, field: int) -> int:
        place = self._place(table, field)
        return place + self._number("<I", place) if place else 0

    def _scalar(self, table: int, field: int, form: str) -> int:
        place = self._place(table, field)
        return self._number(form, place) if place else 0

    def _place(self, table: int, field: int) -> int:
        vtable = table - self._number("<i", table)
        if 4 + 2 * field >= self._number("<H", vtable):
            return 0
        inside = self._number("<H", vtable + 4 + 2 * field)
        return table + inside if inside else 0

    def _number(self, form: str, place: int) -> int:
        try:
            if place < 0:
                raise self._damaged()
            return int(struct.unpack_from(form, self._data, place)[0])
        except struct.error:
            raise self._damaged() from None

    def _damaged(self) -> BundleError:
        return BundleError(f"{self._path} is damaged or cut off: its tables point outside it; copy the bundle anew")
