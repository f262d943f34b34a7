"""From a summariser's trained graph to a bundle: exports to every runtime, known answers, the manifest."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from ..errors import UsageError
from ..runtimes.encoder_decoder_contract import EncoderDecoderOptions
from ..runtimes.registry import RUNTIMES, open_encoder_decoder
from ..sdk.bundle import Bundle
from ..sdk.bundle_writer import BundleWriter, pending
from ..sdk.manifest import (
    ArtifactEntry,
    Manifest,
    Precision,
    Provenance,
    RuntimeName,
    SummarizingEntry,
    TokenizerEntry,
)
from ..sdk.manifest_checks import SUFFIXES, SUMMARY_DEFAULTS
from .export.encoder_decoder_answers import make_source_answers, questions_of
from .freeze import freeze
from .make_bundle import TOKENIZER, creation_time, package_versions
from .quantized_weights import QuantizedWeights
from .student import Student
from .summary_data import SUMMARY_TOKENS, end_id, prefix_of, start_ids, summarizing_settings
from .torch_graph import TorchGraph


def make_summarizer_bundle(
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
    summary_tokens: int = SUMMARY_TOKENS,
    force: bool = False,
    on_artifact: Callable[[str], None] | None = None,
) -> Bundle:
    """Export graphs to runtimes, make known answers, and write a bundle whole or not at all.

    Arguments and errors are as of :func:`~edgescribe.converters.make_bundle.make_bundle`; ``max_tokens`` is the most
    that a source may have, by default the student's, ``summary_tokens`` the most that a summary may have, the tokens
    that start it included.
    """
    limit = student.max_tokens if max_tokens is None else max_tokens
    if not 2 <= limit <= student.max_tokens:
        raise UsageError(f"max_tokens is {limit}; the student reads 2 to {student.max_tokens} tokens")
    entry = summarizing_entry(student, limit, summary_tokens)
    if not graphs or not runtimes:
        raise UsageError("a bundle needs at least one precision and one runtime")
    for precision, graph in graphs.items():
        if graph.precision != precision:
            raise UsageError(f"the graph given for {precision!r} is of {graph.precision!r}")
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
        for precision, graph in graphs.items():
            weights = freeze(graph)
            questions = questions_of(graph, texts)
            for runtime in runtimes:
                if on_artifact is not None:
                    on_artifact(f"{runtime}/{precision}")
                folder = Path(scratch, runtime, precision)
                folder.mkdir(parents=True)
                path = folder / (precision + _suffix(runtime))
                export_encoder_decoder(student, runtime, weights, path, entry.source_context, entry.context)
                with closing(open_encoder_decoder(runtime, path, EncoderDecoderOptions(threads=1))) as session:
                    answers = make_source_answers(session, graph, questions, f"{runtime}/{precision}")
                files = sorted(folder.iterdir(), key=lambda file: (file != path, file.name))
                for file in files:
                    writer.add(f"{runtime}/{file.name}", file)
                    file.unlink()
                artifacts.append(
                    ArtifactEntry(
                        runtime=cast(RuntimeName, runtime),
                        precision=cast(Precision, precision),
                        files=tuple(pending(f"{runtime}/{file.name}") for file in files),
                        source_answers=answers,
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
            summarizing=entry,
            artifacts=tuple(artifacts),
            provenance=provenance,
        )
        return writer.commit(manifest)


def summarizing_entry(student: Student, source_context: int, context: int) -> SummarizingEntry:
    """What a bundle keeps of a summariser beside its artifacts.

    Raises:
        UsageError: a summary of ``context`` tokens is longer than the student's positions, or holds no token behind
            those that start it.
        StudentError: it is not known how its summaries start and end.
    """
    start = start_ids(student)
    most = student.shape.positions - student.shape.position_offset
    if not len(start) < context <= most:
        raise UsageError(
            f"summary_tokens is {context}; this student's summaries have {len(start) + 1} to {most:,} tokens"
        )
    return SummarizingEntry(
        source_context=source_context,
        context=context,
        vocabulary=student.shape.vocabulary,
        start_ids=start,
        end_ids=student.eos_ids or (end_id(student),),
        prefix=prefix_of(student),
        defaults=_defaults(student, len(start), context),
    )


def _defaults(student: Student, started: int, context: int) -> dict[str, float]:
    """Generation defaults: the checkpoint's, and where it tells how it summarises, those.

    Lengths are counted behind the tokens that start a summary; transformers counts all but the first as new, and in
    ``max_length`` and ``min_length`` the first too.
    """
    settings: dict[str, Any] = {**student.generation, **summarizing_settings(student)}
    given = {name: float(value) for name, value in settings.items() if isinstance(value, int | float)}
    room = float(context - started)
    for limit in ("max", "min"):
        name = f"{limit}_new_tokens"
        if name in given:
            given[name] = min(given[name] - (started - 1), room)
        elif f"{limit}_length" in given:
            given[name] = min(given[f"{limit}_length"] - started, room)
    kept: dict[str, float] = {}
    for name, (least, most) in SUMMARY_DEFAULTS.items():
        value = given.get(name, math.nan)
        if least <= value <= most and (name == "length_penalty" or value.is_integer()):
            kept[name] = value
    return kept


def _suffix(runtime: str) -> str:
    if runtime not in RUNTIMES:
        raise UsageError(f"there is no runtime {runtime!r}; choose from {', '.join(RUNTIMES)}")
    return SUFFIXES[runtime][0]


def export_encoder_decoder(
    student: Student, runtime: str, weights: QuantizedWeights, path: Path, source_context: int, context: int
) -> None:
    """Write one encoder-decoder's artifact at ``path``, whose suffix is the runtime's, and the files beside it.

    Raises:
        UsageError: there is no runtime of that name.
        OutputError: the folder cannot be written.
        StudentError: the program reads a weight that ``weights`` does not hold.
    """
    anatomy, shape = student.anatomy, student.shape
    # One exporter at a time: each imports its engine's writer, which takes memory.
    if runtime == "onnxruntime":
        from .export.onnx_encoder_decoder import export_onnx_encoder_decoder

        export_onnx_encoder_decoder(anatomy, shape, weights, path, source_context, context)
    elif runtime == "openvino":
        from .export.openvino_encoder_decoder import export_openvino_encoder_decoder

        export_openvino_encoder_decoder(anatomy, shape, weights, path, source_context, context)
    elif runtime == "litert":
        from .export.litert_encoder_decoder import export_litert_encoder_decoder

        export_litert_encoder_decoder(anatomy, shape, weights, path, source_context, context)
    else:
        raise UsageError(f"there is no runtime {runtime!r}; choose from {', '.join(RUNTIMES)}")
