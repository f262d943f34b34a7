"""Writes a decoder as an ONNX artifact (``.onnx`` and its ``.onnx.data``) for ONNX Runtime, and reads it back.

The graph is :class:`~edgescribe.converters.export.onnx_decoder_graph.OnnxDecoderGraph`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ...errors import BundleError, OutputError, UsageError
from ...runtimes.decoder_contract import DecoderOptions
from ...runtimes.onnxruntime_decoder import DECODER
from ..anatomy import Anatomy, Shape
from ..quantized_weights import BLOCK, Grid, QuantizedWeights, SiteGrids
from .onnx_decoder_data import constant_arrays
from .onnx_decoder_graph import CacheScales, OnnxDecoderGraph
from .onnx_decoder_products import unpack_int4, unpack_int8

LINEAR_OPERATORS = ("MatMulNBits", "MatMulIntegerToFloat", "QGemm", "FusedMatMul", "MatMul", "Gemm")
KIND = "edgescribe decoder 1"


@dataclass(frozen=True)
class OnnxDecoderContents:
    """What a file holds.

    Attributes:
        rows: integers int8 ``[out, in]`` and scales float32 ``[out]`` of each int8 linear layer and table, by name.
        blocks: integers int8 ``[out, in / 32, 32]`` and scales float32 ``[out, in / 32]`` of each int4 one, by name.
        properties: what the file says of itself.
        sites: activation grids by site; empty unless the file is static.
    """

    rows: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
    blocks: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
    properties: dict[str, str]
    sites: dict[str, SiteGrids] = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderKernel:
    """How ONNX Runtime runs one linear layer: its ``site``, the ``kernel`` after optimising, and the ``bits`` of its
    stored weight (32: float). Products of two activations, whose nodes are not named by a weight, are none."""

    site: str
    kernel: str
    bits: int

    @property
    def is_integer(self) -> bool:
        """Whether it multiplies integers."""
        return self.kernel in ("MatMulNBits", "MatMulIntegerToFloat", "QGemm")


def export_onnx_decoder(
    anatomy: Anatomy,
    shape: Shape,
    weights: QuantizedWeights,
    path: Path,
    context: int,
    cache_scales: Sequence[CacheScales] | None = None,
) -> None:
    """Write ``path`` (``.onnx``) and ``<path>.data``, whole or not at all. Equal arguments give equal bytes.

    Args:
        context: the most tokens that a session of it may hold.
        cache_scales: of :func:`measure_cache_scales`, for a KV cache in int8: a quarter of the memory for each token,
            while prefill of long texts takes longer. None: float32.

    Raises:
        OutputError: the name does not end in ``.onnx`` or the folder cannot be written.
        UsageError: ``context`` is not from 1 to the positions that the student was trained for.
        StudentError: the program reads a weight that ``weights`` does not hold, or its heads are too narrow for an int8
            cache.
    """
    if path.suffix != ".onnx":
        raise OutputError(f"an ONNX artifact's name ends in .onnx, and {str(path)!r} does not: name it so")
    if not 1 <= context <= shape.positions:
        raise UsageError(f"a context of {context} tokens was asked for; the student takes 1 to {shape.positions}")
    graph = OnnxDecoderGraph(weights, context, cache_scales)
    anatomy.forward(graph, shape, "generate")
    heads, width = graph.cache_widths[0]
    properties = {
        "kind": KIND,
        "precision": weights.precision,
        "context": str(context),
        "vocabulary": str(graph.vocabulary),
        "layers": str(len(graph.cache_widths)),
        "cache_heads": str(heads),
        "cache_width": str(width),
        "cache_bytes": str(4 if cache_scales is None else 1),
        "heads": str(shape.heads),
        "hidden": str(shape.hidden),
        "neurons": str(shape.neurons),
        "weight_bytes": str(graph.products.packed + graph.products.tables),
    }
    graph.writer.write(path, properties)


def measure_cache_scales(path: Path, texts: Iterable[NDArray[np.int32]]) -> list[CacheScales]:
    """Scales for an int8 cache: each channel's largest magnitude over ``texts``, which an artifact of float32 runs.

    Args:
        path: an artifact that :func:`export_onnx_decoder` wrote without scales.
        texts: tokens int32 ``[n]`` of each; what is longer than the artifact's context is left out.

    Raises:
        BundleError: it is no decoder's artifact.
        UsageError: no texts, or an artifact of an int8 cache.
    """
    session = DECODER.open_decoder(path, DecoderOptions())
    largest: dict[str, NDArray[np.float32]] = {}
    try:
        for text in texts:
            session.rewind(0)
            session.prefill(text[: session.context])
            for name, array in session.save_cache().arrays.items():
                if array.dtype != np.float32:
                    raise UsageError(f"{path.name} has an int8 cache already; measure one of float32")
                found = np.abs(array).max(axis=1).astype(np.float32)
                largest[name] = np.maximum(largest[name], found) if name in largest else found
    finally:
        session.close()
    if not largest:
        raise UsageError("no texts were given to measure a cache's scales by")
    scales = {name: (np.maximum(found, 1e-6) / 127).astype(np.float32) for name, found in largest.items()}
    return [CacheScales(scales[f"{layer}.key"], scales[f"{layer}.value"]) for layer in range(len(scales) // 2)]


def read_back(path: Path) -> OnnxDecoderContents:
    """The integers and scales that an artifact of :func:`export_onnx_decoder` holds.

    Raises:
        BundleError: the file is not a readable ONNX model, or its data file is not there.
    """
    contents = OnnxDecoderContents({}, {}, {})
    read_into(contents, path)
    return contents


def read_into(contents: OnnxDecoderContents, path: Path) -> None:
    """Add what the graph ``path`` holds to ``contents``.

    Raises:
        BundleError: the file is not a readable ONNX model, or its data file is not there.
    """
    model = _read(path)
    try:
        constants = constant_arrays(model, path.parent)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path.name}'s data file cannot be read: {error}; copy the bundle anew") from error
    contents.properties.update({entry.key: entry.value for entry in model.metadata_props})
    for node in model.graph.node:
        said = {entry.key: entry.value for entry in node.metadata_props}
        stored = node.name.partition(":")[2]
        if node.op_type == "MatMulNBits":
            sizes = [int(size) for size in said["rows"].split(",")]
            _take(contents, stored.split("|"), sizes, constants, stored, _attribute(node, "K"))
        elif node.op_type == "GatherBlockQuantized":
            _take(contents, [stored], [len(constants[stored])], constants, stored, int(said["width"]))
        elif node.op_type == "MatMulIntegerToFloat":
            _take_rows(contents, stored, said["rows"], constants[node.input[1]].T, constants[node.input[3]])
        elif node.op_type == "QGemm":
            whole = constants[node.input[3]]
            rows = whole if _attribute(node, "transB") else whole.T
            _take_rows(contents, stored, said["rows"], rows, constants[node.input[4]])
            grids = SiteGrids(*(_grid(constants, node.input[at : at + 2]) for at in (1, 7)))
            if contents.sites.setdefault(node.name.partition(":")[0], grids) != grids:
                raise BundleError(f"{path.name} has two activation grids for {node.name!r}: export it anew")
        elif node.op_type == "Gather" and node.name.startswith("rows:") and f"{stored}.scales" in constants:
            contents.rows[stored] = np.array(constants[stored]), np.array(constants[f"{stored}.scales"])


def _take_rows(
    contents: OnnxDecoderContents, stored: str, sizes: str, rows: NDArray[Any], scales: NDArray[np.float32]
) -> None:
    """Layers that lie one below the other in ``rows``, each so high as ``sizes`` has it."""
    ends = np.cumsum([int(size) for size in sizes.split(",")])[:-1]
    parts = zip(stored.split("|"), np.split(rows, ends), np.split(scales, ends), strict=True)
    contents.rows.update({name: (np.ascontiguousarray(part), scale) for name, part, scale in parts})


def _grid(constants: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Grid:
    """The grid whose scale and uint8 zero point have these names."""
    scale, zero_point = (constants[name].item() for name in names)
    return Grid(scale, zero_point - 128)


def _take(
    contents: OnnxDecoderContents,
    names: list[str],
    sizes: list[int],
    constants: dict[str, NDArray[Any]],
    stored: str,
    width: int,
) -> None:
    packed, scales = constants[stored], np.asarray(constants[f"{stored}.scales"], np.float32)
    ends = np.cumsum(sizes)
    for name, size, end in zip(names, sizes, ends, strict=True):
        if name in contents.rows or name in contents.blocks:
            continue
        part = slice(int(end) - size, int(end))
        if packed.shape[2] == BLOCK // 2:
            contents.blocks[name] = unpack_int4(packed[part]), scales[part]
        else:
            contents.rows[name] = unpack_int8(packed[part], width), scales[part, 0]


def kernel_report(path: Path) -> list[DecoderKernel]:
    """How ONNX Runtime's CPU provider runs each linear layer, read from the graph that it optimised.

    Raises:
        BundleError: the file is not a readable ONNX model.
    """
    _read(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = _read(Path(options.optimized_model_filepath)).graph
    return [
        DecoderKernel(node.name.partition(":")[0], node.op_type, _bits(node))
        for node in graph.node
        if node.op_type in LINEAR_OPERATORS and ":" in node.name
    ]


def _bits(node: onnx.NodeProto) -> int:
    if node.op_type == "MatMulNBits":
        return _attribute(node, "bits")
    return 8 if node.op_type in ("MatMulIntegerToFloat", "QGemm") else 32


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return int(next(each.i for each in node.attribute if each.name == name))


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise BundleError(f"{str(path)!r} is not an ONNX model that can be read: {error}") from error
    if not model.graph.node:
        raise BundleError(f"{str(path)!r} is an ONNX model without a single node: it is damaged, export it anew")
    return model
