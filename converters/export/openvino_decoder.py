"""Writes a decoder as an OpenVINO artifact (``.xml`` with its ``.bin`` beside it), and reads it back.

The graph is :class:`~edgescribe.converters.export.openvino_decoder_graph.OpenVinoDecoderGraph`'s.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ...errors import BundleError, OutputError, UsageError
from ..anatomy import Anatomy, Shape
from ..quantized_weights import QuantizedWeights, SiteGrids
from .openvino_decoder_graph import OpenVinoDecoderGraph
from .openvino_decoder_products import unpack_int4
from .openvino_products import sites_of

KIND = "edgescribe decoder 1"
INTEGERS = ("i4", "u4", "i8", "u8")


@dataclass(frozen=True)
class OpenVinoDecoderContents:
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
    """How the CPU plugin runs one linear layer: its ``site``, the plugin's name of the ``kernel``, and the element
    type of the ``weight`` that it multiplies (``i4``, ``i8``, ``f32``)."""

    site: str
    kernel: str
    weight: str

    @property
    def is_integer(self) -> bool:
        """Whether it reads the stored integers."""
        return self.weight in INTEGERS


def export_openvino_decoder(
    anatomy: Anatomy, shape: Shape, weights: QuantizedWeights, path: Path, context: int
) -> None:
    """Write ``path`` (``.xml``) and the ``.bin`` beside it, both whole or not at all.

    Equal arguments give equal bytes with one version of OpenVINO.

    Args:
        context: the most tokens that a session of it may hold.

    Raises:
        OutputError: the name does not end in ``.xml`` or the folder cannot be written.
        UsageError: ``context`` is not from 1 to the positions that the student was trained for.
        StudentError: the program reads a weight that ``weights`` does not hold.
    """
    if path.suffix != ".xml":
        raise OutputError(f"an OpenVINO artifact's name ends in .xml, and {str(path)!r} does not: name it so")
    if not 1 <= context <= shape.positions:
        raise UsageError(f"a context of {context} tokens was asked for; the student takes 1 to {shape.positions}")
    graph = OpenVinoDecoderGraph(weights, context)
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
        "hidden": str(shape.hidden),
        "neurons": str(shape.neurons),
        "heads": str(shape.heads),
    }
    model = graph.model(f"{anatomy.model_type}-generate-{weights.precision}", properties)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
            draft = Path(folder, path.name)
            ov.save_model(model, draft, compress_to_fp16=False)
            draft.write_text(re.sub(r">\s+<", "><", draft.read_text(encoding="utf-8")), encoding="utf-8")
            for suffix in (".bin", ".xml"):
                with draft.with_suffix(suffix).open("rb") as file:
                    os.fsync(file.fileno())
            for suffix in (".bin", ".xml"):
                draft.with_suffix(suffix).replace(path.with_suffix(suffix))
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; choose a folder that can be written") from error


def read_back(path: Path) -> OpenVinoDecoderContents:
    """The integers and scales that an artifact of :func:`export_openvino_decoder` holds.

    Raises:
        BundleError: the file is not a readable OpenVINO model of a decoder.
    """
    return contents_of(read_model(path), path)


def contents_of(model: ov.Model, path: Path) -> OpenVinoDecoderContents:
    """As :func:`read_back` of a model that was read from ``path``.

    Raises:
        BundleError: it is not a decoder's.
    """
    try:
        properties = {key: str(value) for key, value in model.get_rt_info(["edgescribe"]).value.items()}
    except RuntimeError as error:
        raise BundleError(f"{str(path)!r} is not a decoder made by edgescribe: export it anew") from error
    heights: dict[str, list[int]] = json.loads(properties.pop("heights"))
    constants = {
        node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"
    }
    contents = OpenVinoDecoderContents({}, {}, properties, sites_of(model))
    for label, sizes in heights.items():
        stored = constants[f"weight:{label}"]
        kind = stored.get_element_type().to_string()
        if kind not in INTEGERS:
            continue
        scales = np.array(constants[f"scales:{label}"].data, np.float32)[..., 0]
        integers = unpack_int4(stored) if kind == "i4" else np.array(stored.data, copy=True)
        end = 0
        for name, size in zip(label.split("|"), sizes, strict=True):
            part = slice(end, end + size)
            end += size
            (contents.blocks if kind == "i4" else contents.rows)[name] = integers[part], scales[part]
    return contents


def kernel_report(path: Path) -> list[DecoderKernel]:
    """How the CPU plugin of this machine runs each linear layer, read from its compiled graph.

    Raises:
        BundleError: the file is not a readable OpenVINO model.
    """
    return kernels_of(read_model(path))


def kernels_of(model: ov.Model) -> list[DecoderKernel]:
    """As :func:`kernel_report` of a model that was read."""
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # Kernels of a model with free dimensions are chosen when it first runs: of one token, the first of its text.
    least = {"source_length": 1}
    compiled(
        {
            port.get_any_name(): np.full(
                [1 if size.is_dynamic else size.get_length() for size in port.get_partial_shape()],
                least.get(port.get_any_name(), 0),
                np.float32 if port.get_element_type() == ov.Type.f32 else np.int32,
            )
            for port in compiled.inputs
        }
    )
    report = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind = str(info["layerType"].astype(str))
        layers = str(info["originalLayersNames"].astype(str)).split(",")
        # Where a product takes in the rounding of what leaves it, its own name may be gone.
        sites = [found[1] for found in (re.match(r"(?:linear|output):([^/]*)", layer) for layer in layers) if found]
        if kind == "FullyConnected" or (kind == "MatMul" and sites):
            weight = node.input_value(1).get_element_type().to_string()
            kernel = str(info["primitiveType"].astype(str))
            report.append(DecoderKernel(sites[0] if sites else "", kernel, weight))
    return report


def read_model(path: Path, stored: Path | None = None) -> ov.Model:
    """The model of an ``.xml`` file with its weights, which are in ``stored`` or in the ``.bin`` of its name.

    Raises:
        BundleError: it is not a readable OpenVINO model.
    """
    try:
        return ov.Core().read_model(path) if stored is None else ov.Core().read_model(path, stored)
    except RuntimeError as error:
        raise BundleError(f"{str(path)!r} is not an OpenVINO model that can be read: {error}") from error
