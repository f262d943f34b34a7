"""Writes a student as an OpenVINO artifact (``.xml`` with its ``.bin`` beside it), and reads it back.

The graph is :class:`~edgescribe.converters.export.openvino_graph.OpenVinoGraph`'s. Reading back tells which
integers, scales and grids a file really holds, and which kernels the CPU plugin really runs them on.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ...errors import BundleError, OutputError
from ..anatomy import Anatomy, Shape, Task
from ..quantized_weights import QuantizedWeights, SiteGrids
from .openvino_graph import OpenVinoGraph
from .openvino_products import sites_of


@dataclass(frozen=True)
class OpenVinoContents:
    """What a file holds.

    Attributes:
        matrices: integers int8 ``[out, in]`` and scales float32 ``[out]`` of each quantised linear layer, by name.
        tables: integers int8 ``[rows, width]`` and scales float32 ``[rows]`` of each quantised table, by name.
        sites: activation grids by site; empty unless the file is static.
    """

    matrices: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
    tables: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
    sites: dict[str, SiteGrids]


@dataclass(frozen=True)
class LinearKernel:
    """How the CPU plugin runs one product of the graph.

    ``site``: the site it was written for (empty where the plugin lost the name); ``kernel``: the plugin's name of
    its implementation (``brgemm_avx512_I8``); ``precision``: of the operands (``u8``, ``i8``, ``f32``, …).
    """

    site: str
    kernel: str
    precision: str

    @property
    def is_int8(self) -> bool:
        """Whether the product multiplies 8-bit integers."""
        return self.precision in ("u8", "i8")


def export_openvino(anatomy: Anatomy, shape: Shape, task: Task, weights: QuantizedWeights, path: Path) -> None:
    """Write ``path`` (``.xml``) and the ``.bin`` beside it, both whole or not at all.

    Equal arguments give equal bytes with one version of OpenVINO.

    Raises:
        OutputError: the name does not end in ``.xml`` or the folder cannot be written.
        StudentError: the program reads a weight or site that ``weights`` does not hold.
    """
    if path.suffix != ".xml":
        raise OutputError(f"an OpenVINO artifact's name ends in .xml, and {str(path)!r} does not: name it so")
    graph = OpenVinoGraph(weights, shape.positions)
    anatomy.forward(graph, shape, task)
    model = graph.model(f"{anatomy.model_type}-{task}-{weights.precision}")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
            draft = Path(folder, path.name)
            ov.save_model(model, draft, compress_to_fp16=False)
            draft.write_text(_tightened(draft.read_text(encoding="utf-8")), encoding="utf-8")
            for suffix in (".bin", ".xml"):
                written = draft.with_suffix(suffix)
                with written.open("rb") as file:
                    os.fsync(file.fileno())
            for suffix in (".bin", ".xml"):
                draft.with_suffix(suffix).replace(path.with_suffix(suffix))
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; choose a folder that can be written") from error


def _tightened(xml: str) -> str:
    """The ``.xml`` without its indentation, and without the ports' shapes and the inputs' types: OpenVINO infers them
    anew when it reads (shapes of constants and of the model's inputs stand elsewhere). A third of the file goes."""
    xml = re.sub(r">\s+<", "><", xml)
    xml = re.sub(r"<dim>[^<]*</dim>", "", xml)
    xml = re.sub(r"<input>.*?</input>", lambda ports: re.sub(r' precision="\w+"', "", ports[0]), xml)
    return re.sub(r"></port>|\s/>", lambda end: "/>", xml)


def read_back(path: Path) -> OpenVinoContents:
    """The integers, scales and grids that an artifact of :func:`export_openvino` holds.

    Raises:
        BundleError: the file is not a readable OpenVINO model.
    """
    model = _read(path)
    constants = {
        node.get_friendly_name(): np.array(node.data, copy=True)
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and ":" in node.get_friendly_name()
    }
    contents = OpenVinoContents({}, {}, sites_of(model))
    for label, integers in constants.items():
        kind, _, name = label.partition(":")
        if integers.dtype != np.int8:
            continue
        if kind == "table":
            contents.tables[name] = (integers, constants[f"table scales:{name}"].reshape(-1))
        elif kind == "weight":
            contents.matrices[name] = (integers, constants[f"scales:{name}"].reshape(-1))
    return contents


def kernel_report(path: Path) -> list[LinearKernel]:
    """How the CPU plugin of this machine runs each product with weights, read from its compiled graph.

    Raises:
        BundleError: the file is not a readable OpenVINO model.
    """
    model = _read(path)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # Kernels of a model with free dimensions are chosen when it first runs.
    compiled({name: np.ones((1, 8), np.int32) for port in model.inputs for name in port.get_names()})
    report = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        layers = str(info["originalLayersNames"].astype(str)).split(",")
        sites = [found[1] for found in (re.match(r"(?:linear|output):([^/@]*)", layer) for layer in layers) if found]
        kind = str(info["layerType"].astype(str))
        if kind == "FullyConnected" or (kind == "MatMul" and sites):
            kernel = str(info["primitiveType"].astype(str))
            precision = str(info["runtimePrecision"].astype(str))
            report.append(LinearKernel(sites[0] if sites else "", kernel, precision))
    return report


def _read(path: Path) -> ov.Model:
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise BundleError(f"{str(path)!r} is not an OpenVINO model that can be read: {error}") from error
