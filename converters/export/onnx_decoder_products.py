"""Linear layers, tables and output heads of a decoder's ONNX graph, and how their numbers are stored.

Quantised layers run as com.microsoft MatMulNBits at accuracy level 4: int8 products of the stored integers with
activations that ONNX Runtime rounds to int8 in blocks along the input.

- int4 (blocks of 32): integers + 8, two to a byte, low nibble first, uint8 ``[out, in / 32, 16]``; scales float32
  ``[out, in / 32]``. float16 would hold them too and save a tenth of the file, but ONNX Runtime would keep its own
  float32 copy of them in memory for good;
- int8: integers + 128, uint8 ``[out, blocks, 64 or 32]`` (:func:`int8_block`), the last block filled up with zeros
  where the input is no multiple; scales float32 ``[out, 1]``, one for all blocks of a row.

ONNX Runtime works the Expand out while loading. A tied table and head are stored once, and the rows of
the table are read from the head's integers by GatherBlockQuantized.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import StudentError
from ..quantized_weights import BLOCK, BlockMatrix, FloatMatrix, QuantizedMatrix, QuantizedTable, QuantizedWeights
from .onnx_decoder_data import ExternalNodeWriter
from .onnx_nodes import CONTRIB

INT8_ACTIVATIONS = 4
Matrix = QuantizedMatrix | BlockMatrix | FloatMatrix


class DecoderProducts:
    """Writes the linear layers and tables of one graph. Products are named ``<site>:<matrix>|<matrix>…``.

    Attributes:
        packed: bytes that ONNX Runtime will hold in memory for products: its packed copy of each one's numbers, with a
            scale and a sum for each block.
        tables: bytes of the tables whose rows are looked up, as they are in the file.
    """

    def __init__(self, weights: QuantizedWeights, writer: ExternalNodeWriter) -> None:
        self.weights, self.writer = weights, writer
        self.packed = self.tables = 0

    def matrix(self, name: str) -> Matrix:
        """A linear layer's numbers, or those of a table that is an output head too.

        Raises:
            StudentError: there is no such layer.
        """
        found = self.weights.blocks.get(name) or self.weights.matrices.get(name)
        if found is not None:
            return found
        table = self.weights.tables.get(name)
        if table is None:
            raise StudentError(f"the weights hold no matrix {name!r}; its name in the family's program is wrong")
        if isinstance(table, QuantizedTable):
            return QuantizedMatrix(table.integers, table.scales, None)
        return FloatMatrix(table, None)

    def height(self, name: str) -> int:
        """Results of a linear layer."""
        return _sizes(self.matrix(name))[0]

    def can_join(self, names: tuple[str, ...]) -> bool:
        """Whether several linear layers can run as one product: of one kind and one input width."""
        found = [self.matrix(name) for name in names]
        return len({(type(matrix), _sizes(matrix)[1]) for matrix in found}) == 1

    def rectifies(self, site: str) -> bool:
        """Whether a site's product is never below nought, so that a ReLU behind it does nothing."""
        return False

    def product(self, x: str, names: tuple[str, ...], site: str) -> str:
        """``x @ Wᵀ + b`` for linear layers that can join, side by side."""
        matrices = [self.matrix(name) for name in names]
        heights = [_sizes(matrix)[0] for matrix in matrices]
        width = _sizes(matrices[0])[1]
        stored, node_name = "|".join(names), f"{site}:{'|'.join(names)}"
        bias = joined_bias(matrices, heights)
        biases = [] if bias is None else [self.writer.stored(f"{stored}.bias", bias)]
        if isinstance(matrices[0], FloatMatrix):
            weight = self.writer.stored(stored, np.concatenate([_floats(matrix) for matrix in matrices]))
            self.packed += 4 * sum(heights) * width
            result = self.writer.node(
                "FusedMatMul", [x, weight], domain=CONTRIB, name=node_name, transB=1, transA=0, alpha=1.0
            )
            return self.writer.node("Add", [result, *biases]) if biases else result
        bits, block, integers, scales = self._stored(names, matrices)
        inputs = [x, integers, scales, *(["", "", *biases] if biases else [])]
        self.packed += sum(heights) * -(-width // block) * (block * bits // 8 + 8)
        result = self.writer.node(
            "MatMulNBits", inputs, domain=CONTRIB, name=node_name, N=sum(heights), K=width, bits=bits,
            block_size=block, accuracy_level=INT8_ACTIVATIONS,
        )  # fmt: skip
        rows = ",".join(str(height) for height in heights)
        self.writer.nodes[-1].metadata_props.add(key="rows", value=rows)
        return result

    def rows(self, ids: str, table: str) -> str:
        """Rows of a table for int32 ``ids`` ``[1, T]``: float32 ``[1, T, W]``."""
        matrix = self.matrix(table)
        width = _sizes(matrix)[1]
        if isinstance(matrix, FloatMatrix):
            self.tables += matrix.weight.nbytes
            return self.writer.node("Gather", [self.writer.stored(table, matrix.weight), ids])
        bits, block, integers, scales = self._stored((table,), [matrix])
        self.tables += _sizes(matrix)[0] * -(-width // block) * (block * bits // 8 + 8)
        # One block is one row of a third axis: flattening the head's integers would make a second copy of them.
        shape = self.writer.integers(_sizes(matrix)[0], -1, 1)
        apart = self._kept(f"{table}.row_scales", "Reshape", [scales, shape])
        found = self.writer.node(
            "GatherBlockQuantized", [integers, ids, apart], domain=CONTRIB, name=f"rows:{table}", bits=bits,
            block_size=block, gather_axis=0, quantize_axis=2,
        )  # fmt: skip
        self.writer.nodes[-1].metadata_props.add(key="width", value=str(width))
        rows = self.writer.node("Reshape", [found, self.writer.integers(0, 0, -1)])
        if width % block == 0:
            return rows
        first, end, axis = (self.writer.integers(number) for number in (0, width, 2))
        return self.writer.node("Slice", [rows, first, end, axis])

    def _stored(self, names: tuple[str, ...], matrices: list[Matrix]) -> tuple[int, int, str, str]:
        """Bits, block size, and the names of the integers as MatMulNBits takes them and of the scales."""
        stored = "|".join(names)
        if isinstance(matrices[0], BlockMatrix):
            integers = np.concatenate([each.integers for each in matrices if isinstance(each, BlockMatrix)])
            scales = np.concatenate([each.scales for each in matrices if isinstance(each, BlockMatrix)])
            held = self.writer.stored(f"{stored}.scales", scales)
            return 4, BLOCK, self.writer.stored(stored, pack_int4(integers)), held
        whole = [each for each in matrices if isinstance(each, QuantizedMatrix)]
        block = int8_block(whole[0].integers.shape[1])
        packed = pack_int8(np.concatenate([each.integers for each in whole]), block)
        held = self.writer.stored(f"{stored}.scales", np.concatenate([each.scales for each in whole])[:, None])
        shape = self.writer.integers(*packed.shape[:2])
        spread = self._kept(f"{stored}.block_scales", "Expand", [held, shape])
        return 8, block, self.writer.stored(stored, packed), spread

    def _kept(self, name: str, operator: str, inputs: list[str]) -> str:
        """The result ``name`` of a node that is written at its first use."""
        if not any(name in node.output for node in self.writer.nodes):
            self.writer.node_giving(operator, inputs, [name], domain="", name=name)
        return name


def int8_block(width: int) -> int:
    """How many inputs of an int8 layer ONNX Runtime rounds its activations by: 64, or 32 where that fits better.

    64 made prefill a seventh faster than 32; at 128 and more, products of one row and of several differ in last bits.
    """
    return 32 if 0 < width % 64 <= 32 else 64


def pack_int4(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Integers ``[out, blocks, 32]`` within [-8, 7] as uint8 ``[out, blocks, 16]``, 8 added, low nibble first."""
    raised = (integers + np.int8(8)).astype(np.uint8)
    packed: NDArray[np.uint8] = raised[..., 0::2] | (raised[..., 1::2] << np.uint8(4))
    return packed


def unpack_int4(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """What :func:`pack_int4` packed."""
    both = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return (both.astype(np.int8) - np.int8(8)).reshape(*packed.shape[:-1], -1)


def pack_int8(integers: NDArray[np.int8], block: int) -> NDArray[np.uint8]:
    """Integers ``[out, in]`` as uint8 ``[out, blocks, block]``, 128 added, zeros behind the last where it is short."""
    raised = integers.view(np.uint8) ^ np.uint8(128)
    filled = np.pad(raised, ((0, 0), (0, -raised.shape[1] % block)), constant_values=128)
    return np.ascontiguousarray(filled.reshape(len(raised), -1, block))


def unpack_int8(packed: NDArray[np.uint8], width: int) -> NDArray[np.int8]:
    """What :func:`pack_int8` packed, cut to its width."""
    whole = (packed ^ np.uint8(128)).view(np.int8).reshape(len(packed), -1)
    return np.ascontiguousarray(whole[:, :width])


def _sizes(matrix: Matrix) -> tuple[int, int]:
    if isinstance(matrix, FloatMatrix):
        return matrix.weight.shape[0], matrix.weight.shape[1]
    return matrix.integers.shape[0], int(np.prod(matrix.integers.shape[1:]))


def _floats(matrix: Matrix) -> NDArray[np.float32]:
    return matrix.weight if isinstance(matrix, FloatMatrix) else matrix.dequantized()


def joined_bias(matrices: list[Matrix], heights: list[int]) -> NDArray[np.float32] | None:
    """The biases of layers side by side, zeros for those without one; None: no layer has one."""
    if all(matrix.bias is None for matrix in matrices):
        return None
    parts = zip(matrices, heights, strict=True)
    return np.concatenate([np.zeros(rows, np.float32) if each.bias is None else each.bias for each, rows in parts])
