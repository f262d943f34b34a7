"""Writes an encoder-decoder as an OpenVINO artifact of three files, and reads it back.

- ``<name>.xml`` writes the target, ``<name>.source.xml`` reads the source: the models of
  :class:`~edgescribe.converters.export.openvino_encoder_decoder_graph.OpenVinoEncoderDecoderGraph`;
- ``<name>.bin`` holds the weights of both, those that both have once.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ...errors import BundleError, OutputError, StudentError, UsageError
from ..anatomy import Anatomy, Shape
from ..quantized_weights import QuantizedWeights
from .openvino_decoder import DecoderKernel, OpenVinoDecoderContents, contents_of, kernels_of, read_model
from .openvino_encoder_decoder_graph import OpenVinoEncoderDecoderGraph
from .openvino_encoder_decoder_weights import share_weights

Numbers = tuple[NDArray[np.int8], NDArray[np.float32]]
KIND = "edgescribe encoder-decoder 1"
SOURCE_SUFFIX = ".source.xml"


def openvino_encoder_decoder_files(path: Path) -> tuple[Path, Path, Path]:
    """The files of an artifact ``path``, itself the first."""
    return path, path.with_suffix(SOURCE_SUFFIX), path.with_suffix(".bin")


def export_openvino_encoder_decoder(
    anatomy: Anatomy, shape: Shape, weights: QuantizedWeights, path: Path, source_context: int, context: int
) -> tuple[Path, Path, Path]:
    """Write ``path`` (``.xml``) and the files beside it, all whole or not at all; returns them all, ``path`` first.

    Equal arguments give equal bytes with one version of OpenVINO.

    Args:
        source_context: the most tokens of a source.
        context: the most tokens of a target.

    Raises:
        OutputError: the name does not end in ``.xml`` or the folder cannot be written.
        UsageError: a context is not from 1 to the positions that the student was trained for.
        StudentError: a program reads a weight that ``weights`` does not hold, or the student is no encoder-decoder.
    """
    if path.suffix != ".xml":
        raise OutputError(f"an OpenVINO artifact's name ends in .xml, and {str(path)!r} does not: name it so")
    for what, tokens in (("source", source_context), ("target", context)):
        most = shape.positions - shape.position_offset
        if not 1 <= tokens <= most:
            raise UsageError(f"a {what} context of {tokens} tokens was asked for; the student takes 1 to {most}")
    if anatomy.halves is None:
        raise StudentError(f"a student of {anatomy.model_type} has no encoder and decoder: export it as what it is")
    reading, writing = (OpenVinoEncoderDecoderGraph(weights, context, reads) for reads in (True, False))
    anatomy.halves.encode(reading, shape)
    anatomy.halves.decode(writing, shape)
    heads, width = writing.cache_widths[0]
    source_heads, source_width = writing.source_widths[0]
    properties = {
        "kind": KIND,
        "precision": weights.precision,
        "context": str(context),
        "source_context": str(source_context),
        "vocabulary": str(writing.vocabulary),
        "layers": str(len(writing.cache_widths)),
        "cache_heads": str(heads),
        "cache_width": str(width),
        "source_layers": str(shape.layers),
        "source_heads": str(source_heads),
        "source_width": str(source_width),
        "hidden": str(shape.hidden),
        "neurons": str(max(shape.neurons, shape.decoder_neurons)),
        "heads": str(max(shape.heads, shape.decoder_heads)),
    }
    files = openvino_encoder_decoder_files(path)
    title = f"{anatomy.model_type}-summarize-{weights.precision}"
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
            drafts = [Path(folder, name) for name in ("target.xml", "source.xml", "weights.bin")]
            for graph, half, draft in ((writing, "", drafts[0]), (reading, "-source", drafts[1])):
                ov.save_model(graph.model(title + half, properties), draft, compress_to_fp16=False)
            share_weights(drafts[:2], drafts[2])
            for draft in drafts:
                with draft.open("rb") as opened:
                    os.fsync(opened.fileno())
            for draft, file in reversed(list(zip(drafts, files, strict=True))):
                draft.replace(file)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; choose a folder that can be written") from error
    return files


def read_back(path: Path) -> OpenVinoDecoderContents:
    """The integers, scales and grids that an artifact of :func:`export_openvino_encoder_decoder` holds.

    Raises:
        BundleError: a file is not a readable OpenVINO model of an encoder-decoder, or the two hold other numbers for
            what both have.
    """
    writing, reading = (contents_of(model, path) for model in _models(path))
    _add(writing.rows, reading.rows, path)
    _add(writing.blocks, reading.blocks, path)
    writing.sites.update(reading.sites)
    return writing


def kernel_report(path: Path) -> list[DecoderKernel]:
    """How the CPU plugin of this machine runs each linear layer, read from the compiled graphs.

    Raises:
        BundleError: a file is not a readable OpenVINO model.
    """
    writing, reading = _models(path)
    return [*kernels_of(reading), *kernels_of(writing)]


def _add(kept: dict[str, Numbers], more: dict[str, Numbers], path: Path) -> None:
    for name, (integers, scales) in more.items():
        known = kept.setdefault(name, (integers, scales))
        if not (np.array_equal(known[0], integers) and np.array_equal(known[1], scales)):
            raise BundleError(f"{str(path)!r} holds two weights {name!r}: export it anew")


def _models(path: Path) -> tuple[ov.Model, ov.Model]:
    writing, reading, stored = openvino_encoder_decoder_files(path)
    return read_model(writing, stored), read_model(reading, stored)
