"""From a writer's trained graph to a bundle: exports to every runtime, known answers, the manifest."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..runtimes.decoder_contract import DecoderOptions
from ..runtimes.registry import RUNTIMES, open_decoder
from ..sdk.bundle import Bundle
from ..sdk.bundle_writer import BundleWriter, pending
from ..sdk.manifest import (
    ArtifactEntry,
    Manifest,
    Precision,
    Provenance,
    RuntimeName,
    TokenizerEntry,
    WritingEntry,
)
from ..sdk.manifest_checks import DEFAULTS
from .export.decoder_answers import make_decoder_answers, prompts_of
from .freeze import freeze
from .make_bundle import TOKENIZER, creation_time, package_versions
from .quantized_weights import QuantizedWeights
from .student import Student
from .tokenizer_files import NAMED, special_token
from .torch_graph import TorchGraph
from .writing_data import encode_writing

SUFFIXES = {"onnxruntime": (".onnx", ".onnx.data"), "openvino": (".xml", ".bin"), "litert": (".tflite",)}
"""Files of one artifact by runtime; the first is what the runtime opens."""

CACHE_TEXTS, CACHE_TOKENS = 64, 512
"""Texts that the scales of an int8 cache are measured on, and tokens of each."""


def make_writer_bundle(
    student: Student,
    graphs: Mapping[str, TorchGraph],
    runtimes: Sequence[str],
    out: str | os.PathLike[str],
    *,
    texts: Sequence[str],
    source: Student,
    recipe: Mapping[str, Any],
    seed: int,
    data_sha256: Mapping[str, str],
    name: str | None = None,
    max_tokens: int | None = None,
    force: bool = False,
    on_artifact: Callable[[str], None] | None = None,
    cache_texts: Sequence[str] | None = None,
) -> Bundle:
    """Export graphs to runtimes, make known answers, and write a bundle whole or not at all.

    Arguments and errors are as of :func:`~edgescribe.converters.make_bundle.make_bundle`; ``max_tokens`` is
    the most that prompt and text may have together, by default the student's. With ``cache_texts`` keys and values are
    kept in int8 where the engine has it (ONNX Runtime), with scales measured on the first of them.
    """
    limit = student.max_tokens if max_tokens is None else max_tokens
    if not 2 <= limit <= student.max_tokens:
        raise UsageError(f"max_tokens is {limit}; the student takes 2 to {student.max_tokens} tokens")
    if not graphs or not runtimes:
        raise UsageError("a bundle needs at least one precision and one runtime")
    provenance = Provenance(
        source=source.source,
        source_sha256=source.sha256,
        recipe=dict(recipe),
        seed=seed,
        data_sha256=dict(data_sha256),
        versions=package_versions(),
        created=creation_time(),
    )
    with BundleWriter(out, force) as writer, tempfile.TemporaryDirectory(prefix="edgescribe-") as scratch:
        writer.add(TOKENIZER, student.tokenizer.to_str().encode())
        artifacts = []
        cached = None
        if cache_texts is not None:
            cached = encode_writing(student, cache_texts[:CACHE_TEXTS], min(limit, CACHE_TOKENS))
        for precision, graph in graphs.items():
            weights = freeze(graph)
            prompts = prompts_of(graph, texts)
            for runtime in runtimes:
                if on_artifact is not None:
                    on_artifact(f"{runtime}/{precision}")
                path = Path(scratch, runtime, precision + SUFFIXES[runtime][0])
                path.parent.mkdir(exist_ok=True)
                seen = cached if runtime == "onnxruntime" else None
                export_decoder(student, runtime, weights, path, limit, seen)
                with closing(open_decoder(runtime, path, DecoderOptions(threads=1))) as session:
                    answers = make_decoder_answers(session, graph, prompts, f"{runtime}/{precision}")
                files = [path.with_name(precision + suffix) for suffix in SUFFIXES[runtime]]
                present = [file for file in files if file.exists()]
                for file in present:
                    writer.add(f"{runtime}/{file.name}", file)
                    file.unlink()
                artifacts.append(
                    ArtifactEntry(
                        runtime=cast(RuntimeName, runtime),
                        precision=cast(Precision, precision),
                        files=tuple(pending(f"{runtime}/{file.name}") for file in present),
                        answers=answers,
                    )
                )
        manifest = Manifest(
            schema_version=1,
            name=(name or Path(source.source).name or "student")[:200],
            family=student.anatomy.model_type,
            task=student.task,
            tokenizer=TokenizerEntry(
                file=pending(TOKENIZER), max_tokens=min(limit, 65536), pad_id=student.pad_id, padding_side="right"
            ),
            writing=writing_entry(student, limit),
            artifacts=tuple(artifacts),
            provenance=provenance,
        )
        return writer.commit(manifest)


def writing_entry(student: Student, context: int) -> WritingEntry:
    """What a bundle keeps of a writer beside its artifacts."""
    given = student.generation
    sampled = given.get("do_sample", False)
    named = {name: special_token(student.tokenizer_config, name) for name in NAMED}
    defaults = {
        name: float(given[name])
        for name, (least, most) in DEFAULTS.items()
        if isinstance(given.get(name), int | float) and least <= given[name] <= most
    }
    if not sampled:
        defaults = {name: value for name, value in defaults.items() if name == "repetition_penalty"}
    elif "temperature" not in defaults:
        defaults["temperature"] = 1.0
    return WritingEntry(
        context=context,
        vocabulary=student.shape.vocabulary,
        end_ids=student.eos_ids,
        chat_template=student.chat_template,
        special_tokens={name: token for name, token in named.items() if token is not None},
        defaults=defaults,
    )


def export_decoder(
    student: Student,
    runtime: str,
    weights: QuantizedWeights,
    path: Path,
    context: int,
    cache_texts: Sequence[NDArray[np.int32]] | None = None,
) -> None:
    """Write one decoder artifact at ``path``, whose suffix is the runtime's.

    ``cache_texts``: for ONNX Runtime alone, tokens int32 ``[n]`` of texts that the scales of an int8 cache are measured
    on; None keeps the cache in float32.

    Raises:
        UsageError: there is no runtime of that name.
        OutputError: the folder cannot be written.
        StudentError: the program reads a weight that ``weights`` does not hold.
    """
    anatomy, shape = student.anatomy, student.shape
    # One exporter at a time: each imports its engine's writer, which takes memory.
    if runtime == "onnxruntime":
        from .export.onnx_decoder import export_onnx_decoder, measure_cache_scales

        scales = None
        if cache_texts is not None:
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                plain = Path(scratch, path.name)
                export_onnx_decoder(anatomy, shape, weights, plain, context)
                scales = measure_cache_scales(plain, cache_texts)
        export_onnx_decoder(anatomy, shape, weights, path, context, scales)
    elif runtime == "openvino":
        from .export.openvino_decoder import export_openvino_decoder

        export_openvino_decoder(anatomy, shape, weights, path, context)
    elif runtime == "litert":
        from .export.litert_decoder import export_litert_decoder

        export_litert_decoder(anatomy, shape, weights, path, context)
    else:
        raise UsageError(f"there is no runtime {runtime!r}; choose from {', '.join(RUNTIMES)}")
