"""From trained graphs to a bundle: exports to every runtime, known answers from every engine, the manifest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from ..errors import UsageError
from ..runtimes.contract import OpenOptions, TensorSpec
from ..runtimes.registry import RUNTIMES, open_artifact
from ..sdk.bundle import Bundle
from ..sdk.bundle_writer import BundleWriter, pending, replace_in_manifest
from ..sdk.manifest import (
    ArtifactEntry,
    Manifest,
    Precision,
    Provenance,
    RuntimeName,
    Tensor,
    TokenizerEntry,
)
from ..sdk.measure import ProcessReport, as_measurement
from .export.known_answers import Reference, make_known_answers, make_reference
from .freeze import freeze
from .metrics import Metrics
from .quantized_weights import QuantizedWeights
from .student import Student
from .torch_graph import TorchGraph

BUCKETS = (32, 64, 128, 256)
TOKENIZER = "tokenizer.json"
SUFFIXES = {"onnxruntime": (".onnx",), "openvino": (".xml", ".bin"), "litert": (".tflite",)}
"""Files of one artifact by runtime; the first is what the runtime opens."""

PACKAGES = (
    "edgescribe", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "onnx", "onnxruntime",
    "openvino", "ai-edge-litert", "scikit-learn",
)  # fmt: skip


def make_bundle(
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
) -> Bundle:
    """Export graphs to runtimes, make known answers, and write a bundle whole or not at all.

    Args:
        student: what the graphs were made of: its tokenizer, labels and limits go into the bundle.
        graphs: trained graphs by precision; static quantizers must have been started. The order is the bundle's
            order of preference, and stands before that of ``runtimes``.
        runtimes: names of :data:`~edgescribe.runtimes.registry.RUNTIMES`.
        out: the bundle's folder.
        texts: real texts, from which known answers are made.
        source: the student as it was read, before anything was done to it.
        recipe: what was done to it, plain values.
        seed: of the whole run.
        data_sha256: hashes of the data files by what they served for (``train``, ``evaluation``).
        name: what the bundle calls the student; by default the last part of where it was read from.
        max_tokens: longest input, special tokens included; by default the student's.
        force: replace ``out`` where it is a bundle.
        on_artifact: told the name of each artifact (``onnxruntime/w8a8-static``) before it is made.

    Raises:
        UsageError: no graphs or runtimes, unknown ones, ``max_tokens`` is more than the student reads, or
            SOURCE_DATE_EPOCH is no number.
        OutputError: ``out`` exists, or cannot be written.
        EngineError: an engine is missing, or cannot run the student.
        WrongAnswerError: an artifact does not give what the torch reference gives.
        DataError: fewer than two different texts.
        StudentError: the student answers zeros to everything, or lacks weights.
    """
    limit = _checked_limit(student, max_tokens)
    _check_names(graphs, runtimes)
    provenance = Provenance(
        source=source.source,
        source_sha256=source.sha256,
        recipe=dict(recipe),
        seed=seed,
        data_sha256=dict(data_sha256),
        versions=package_versions(),
        created=creation_time(),
    )
    buckets = (*(size for size in BUCKETS if size < limit), limit)
    with BundleWriter(out, force) as writer, tempfile.TemporaryDirectory(prefix="edgescribe-") as scratch:
        tokenizer = pending(TOKENIZER)
        writer.add(TOKENIZER, student.tokenizer.to_str().encode())
        artifacts = []
        for precision, graph in graphs.items():
            weights = freeze(graph)
            reference = make_reference(graph, texts, limit)
            for runtime in runtimes:
                if on_artifact is not None:
                    on_artifact(f"{runtime}/{precision}")
                path = Path(scratch, runtime, precision + SUFFIXES[runtime][0])
                path.parent.mkdir(exist_ok=True)
                export(student, runtime, weights, path, buckets)
                artifacts.append(_artifact(student, runtime, reference, path, buckets, limit))
                for suffix in SUFFIXES[runtime]:
                    writer.add(f"{runtime}/{precision}{suffix}", path.with_suffix(suffix))
        manifest = Manifest(
            schema_version=1,
            name=(name or Path(source.source).name or "student")[:200],
            family=student.anatomy.model_type,
            task=student.task,
            labels=student.labels,
            tokenizer=TokenizerEntry(
                file=tokenizer,
                max_tokens=limit,
                pad_id=student.pad_id,
                padding_side=student.anatomy.padding_side,
            ),
            artifacts=tuple(artifacts),
            provenance=provenance,
        )
        return writer.commit(manifest)


def add_results(bundle: Bundle, quality: Mapping[str, Metrics], processes: Sequence[ProcessReport]) -> Bundle:
    """Write quality by stage and measurements, which can only be had from the bundle itself, into its manifest.

    The bundle is replaced whole; what it held of either before goes.

    Raises:
        OutputError: it cannot be written; the bundle is as it was.
        BundleError: a measurement is of an artifact that is not in the bundle, or a file was changed meanwhile.
    """
    return replace_in_manifest(
        bundle,
        quality={stage: metrics.values() for stage, metrics in quality.items()},
        measurements=tuple(as_measurement(process) for process in processes),
    )


def export(
    student: Student, runtime: str, weights: QuantizedWeights, path: Path, buckets: Sequence[int] = BUCKETS
) -> None:
    """Write one artifact at ``path``, whose suffix is the runtime's; ``buckets`` are LiteRT's token counts.

    Raises:
        UsageError: there is no runtime of that name.
        OutputError: the folder cannot be written.
        StudentError: the program reads a weight that ``weights`` does not hold.
    """
    anatomy, shape, task = student.anatomy, student.shape, student.task
    # One exporter at a time: each imports its engine's writer, which takes memory.
    if runtime == "onnxruntime":
        from .export.onnx import export_onnx

        export_onnx(anatomy, shape, task, weights, path)
    elif runtime == "openvino":
        from .export.openvino import export_openvino

        export_openvino(anatomy, shape, task, weights, path)
    elif runtime == "litert":
        from .export.litert import export_litert

        export_litert(anatomy, shape, task, weights, path, buckets)
    else:
        raise UsageError(f"there is no runtime {runtime!r}; choose from {', '.join(RUNTIMES)}")


def _checked_limit(student: Student, max_tokens: int | None) -> int:
    limit = student.max_tokens if max_tokens is None else max_tokens
    if not 2 <= limit <= student.max_tokens:
        raise UsageError(f"max_tokens is {limit}; the student reads 2 to {student.max_tokens} tokens")
    return limit


def _check_names(graphs: Mapping[str, TorchGraph], runtimes: Sequence[str]) -> None:
    if not graphs or not runtimes:
        raise UsageError("a bundle needs at least one precision and one runtime")
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise UsageError(f"there is no runtime {runtime!r}; choose from {', '.join(RUNTIMES)}")
    if len(set(runtimes)) < len(runtimes):
        raise UsageError(f"a runtime is named twice: {', '.join(runtimes)}")
    for precision, graph in graphs.items():
        if graph.precision != precision:
            raise UsageError(f"the graph given for {precision!r} is of {graph.precision!r}")


def _artifact(
    student: Student, runtime: str, reference: Reference, path: Path, buckets: tuple[int, ...], max_tokens: int
) -> ArtifactEntry:
    precision = reference.precision
    options = OpenOptions(threads=1, padding_side=student.anatomy.padding_side, max_tokens=max_tokens)
    with closing(open_artifact(runtime, path, options)) as session:
        answers = make_known_answers(session, reference, f"{runtime}/{precision}")
        inputs, outputs = _tensors(session.inputs), _tensors(session.outputs)
    return ArtifactEntry(
        runtime=cast(RuntimeName, runtime),
        precision=cast(Precision, precision),
        files=tuple(pending(f"{runtime}/{precision}{suffix}") for suffix in SUFFIXES[runtime]),
        inputs=inputs,
        outputs=outputs,
        buckets=buckets if runtime == "litert" else (),
        known_answers=answers,
    )


def _tensors(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name=spec.name, dtype=cast(Any, spec.dtype), shape=spec.shape) for spec in specs)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that have a part in a bundle."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def creation_time() -> str:
    """The time now, in UTC; that of the environment's SOURCE_DATE_EPOCH (seconds since 1970) where it is set.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is not a number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        moment = datetime.now(UTC)
    else:
        try:
            moment = datetime.fromtimestamp(int(epoch), UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(f"SOURCE_DATE_EPOCH is {epoch!r}; give whole seconds since 1970, or unset it") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
