"""What a manifest must fulfil beyond its types: that its parts agree with each other.

:func:`check_manifest` looks at the manifest alone, not at the disk. Every fault is a
:class:`~edgescribe.errors.BundleError` that names the place in ``bundle.json``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import msgspec

from ..errors import BundleError
from .bundle_files import check_relative_path
from .manifest import (
    ArtifactEntry,
    DecoderAnswerEntry,
    KnownAnswerEntry,
    Manifest,
    SummarizingEntry,
    Tensor,
    WritingEntry,
)

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
MOST_FED = {"input_ids": 2**24, "attention_mask": 1, "token_type_ids": 16}
"""Largest value of each input in a known answer."""

SUFFIXES = {
    "onnxruntime": (".onnx", (".data",)),
    "openvino": (".xml", (".bin",)),
    "litert": (".tflite", ()),
}
"""By runtime: the suffix of the file that is opened, and those allowed beside it. Nothing that could be a pickle.

A summariser's halves may be files of their own, so that it may have the first suffix beside too."""

TASKS_WITHOUT_LABELS = ("embed", "generate", "summarize")

OUTPUT_RANK = {"classify": 2, "tag": 3, "embed": 2}


def check_manifest(manifest: Manifest) -> None:
    """Check that labels, tensors, buckets, known answers, paths and figures agree with each other.

    Raises:
        BundleError: they do not; the message names the place.
    """
    _check_labels(manifest)
    _check_writing(manifest)
    _check_summarizing(manifest)
    seen: set[tuple[str, str]] = set()
    for index, artifact in enumerate(manifest.artifacts):
        where = f"artifacts[{index}]"
        key = (artifact.runtime, artifact.precision)
        if key in seen:
            _refuse(where, f"a second artifact for {artifact.runtime} in {artifact.precision}")
        seen.add(key)
        _check_files(where, artifact, manifest)
        if manifest.writing is not None:
            _check_writers_artifact(where, artifact, manifest.writing)
            continue
        if manifest.summarizing is not None:
            _check_summarizers_artifact(where, artifact, manifest.summarizing)
            continue
        _check_graph(where, artifact)
        _check_tensors(where, artifact, manifest)
        _check_buckets(where, artifact, manifest.tokenizer.max_tokens)
        for number, answer in enumerate(artifact.known_answers):
            _check_known_answer(f"{where}.known_answers[{number}]", answer, artifact, manifest.tokenizer.max_tokens)
    if not manifest.tokenizer.file.path.endswith(".json"):
        _refuse("tokenizer.file.path", f"{manifest.tokenizer.file.path!r} is not a .json file")
    _check_paths(manifest)
    _check_figures(manifest, seen)


def _refuse(where: str, fault: str) -> NoReturn:
    raise BundleError(f"bundle.json, {where}: {fault}; convert the student again with this edgescribe")


def _check_labels(manifest: Manifest) -> None:
    if manifest.task in TASKS_WITHOUT_LABELS:
        if manifest.labels:
            _refuse("labels", f"{len(manifest.labels)} labels for the task {manifest.task!r}, which has none")
        return
    if not manifest.labels:
        _refuse("labels", f"no labels for the task {manifest.task!r}")
    _check_distinct("labels", manifest.labels)


DEFAULTS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**24),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}
"""Generation defaults that a bundle may set, with the least and the largest value of each."""


def _check_writing(manifest: Manifest) -> None:
    writing = manifest.writing
    if (writing is None) == (manifest.task == "generate"):
        _refuse("writing", f"{'missing' if writing is None else 'present'} for the task {manifest.task!r}")
    if writing is None:
        return
    _check_vocabulary("writing.end_ids", writing.end_ids, writing.vocabulary)
    _check_defaults("writing.defaults", writing.defaults, DEFAULTS)
    if not all(name.isidentifier() for name in writing.special_tokens):
        _refuse("writing.special_tokens", "a name that is none")
    if manifest.tokenizer.max_tokens > writing.context:
        _refuse("tokenizer.max_tokens", f"more than the context of {writing.context}")


SUMMARY_DEFAULTS: dict[str, tuple[float, float]] = {
    "num_beams": (1, 32),
    "length_penalty": (-16.0, 16.0),
    "early_stopping": (0, 1),
    "no_repeat_ngram_size": (0, 2**16),
    "max_new_tokens": (0, 2**20),
    "min_new_tokens": (0, 2**20),
}
"""The same of summarisers; all but ``length_penalty`` are whole numbers."""


def _check_summarizing(manifest: Manifest) -> None:
    summarizing = manifest.summarizing
    if (summarizing is None) == (manifest.task == "summarize"):
        _refuse("summarizing", f"{'missing' if summarizing is None else 'present'} for the task {manifest.task!r}")
    if summarizing is None:
        return
    for name in ("start_ids", "end_ids"):
        _check_vocabulary(f"summarizing.{name}", getattr(summarizing, name), summarizing.vocabulary)
    if len(summarizing.start_ids) > summarizing.context:
        _refuse("summarizing.start_ids", f"more than the context of {summarizing.context}")
    _check_defaults("summarizing.defaults", summarizing.defaults, SUMMARY_DEFAULTS)
    for name, value in summarizing.defaults.items():
        if name != "length_penalty" and value != int(value):
            _refuse(f"summarizing.defaults[{name!r}]", f"{value}, which is no whole number")
    if manifest.tokenizer.max_tokens > summarizing.source_context:
        _refuse("tokenizer.max_tokens", f"more than the source context of {summarizing.source_context}")


def _check_vocabulary(where: str, tokens: Iterable[int], vocabulary: int) -> None:
    if any(not 0 <= token < vocabulary for token in tokens):
        _refuse(where, f"a token that is not in 0 … {vocabulary - 1}")


def _check_defaults(where: str, given: dict[str, float], ranges: dict[str, tuple[float, float]]) -> None:
    for name, value in given.items():
        least, most = ranges.get(name, (math.inf, -math.inf))
        if not least <= value <= most:
            _refuse(f"{where}[{name!r}]", f"{value} (known are {', '.join(ranges)}, each within its range)")


def _check_writers_artifact(where: str, artifact: ArtifactEntry, writing: WritingEntry) -> None:
    if artifact.inputs or artifact.outputs or artifact.buckets or artifact.known_answers or artifact.source_answers:
        _refuse(where, "a writer's artifact with what those of graphs or summarisers have")
    _check_answers(f"{where}.answers", artifact.answers, writing.context, writing.vocabulary)


def _check_summarizers_artifact(where: str, artifact: ArtifactEntry, summarizing: SummarizingEntry) -> None:
    if artifact.inputs or artifact.outputs or artifact.buckets or artifact.known_answers or artifact.answers:
        _refuse(where, "a summariser's artifact with what those of graphs or writers have")
    place = f"{where}.source_answers"
    _check_answers(place, artifact.source_answers, summarizing.context, summarizing.vocabulary)
    for number, answer in enumerate(artifact.source_answers):
        _check_vocabulary(f"{place}[{number}].source", answer.source, summarizing.vocabulary)
        if len(answer.source) > summarizing.source_context:
            _refuse(
                f"{place}[{number}].source",
                f"{len(answer.source)} tokens, more than the source context of {summarizing.source_context}",
            )


def _check_answers(
    where: str, answers: Sequence[DecoderAnswerEntry], context: int, vocabulary: int
) -> None:
    if not answers:
        _refuse(where, "none, so that the engine could not be checked")
    for number, answer in enumerate(answers):
        place = f"{where}[{number}]"
        if len(answer.tokens) != len(answer.logits):
            _refuse(place, f"{len(answer.tokens)} tokens with {len(answer.logits)} logits")
        _check_vocabulary(place, (*answer.prompt, *answer.tokens), vocabulary)
        if len(answer.prompt) > context:
            _refuse(place, f"a prompt of {len(answer.prompt)} tokens, more than the context of {context}")
        if not _finite([*answer.logits, answer.tolerance], limit=1e30):
            _refuse(place, "values that are not finite")


def _check_graph(where: str, artifact: ArtifactEntry) -> None:
    """What every artifact has that is no writer's and no summariser's."""
    if not artifact.inputs or not artifact.outputs or not artifact.known_answers:
        _refuse(where, "no inputs, outputs or known answers")
    if artifact.answers or artifact.source_answers:
        _refuse(where, "a writer's or summariser's answers in the artifact of a graph")


def _check_distinct(where: str, names: Sequence[str]) -> None:
    found: set[str] = set()
    for name in names:
        if name in found:
            _refuse(where, f"{name!r} is there twice")
        found.add(name)


def _check_files(where: str, artifact: ArtifactEntry, manifest: Manifest) -> None:
    main, beside = SUFFIXES[artifact.runtime]
    if manifest.summarizing is not None:
        beside = (main, *beside)
    for number, file in enumerate(artifact.files):
        allowed = (main,) if number == 0 else beside
        if not file.path.endswith(allowed):
            _refuse(
                f"{where}.files[{number}]",
                f"{file.path!r} is no file for {artifact.runtime} (allowed: {', '.join(allowed) or 'none'})",
            )


def _check_paths(manifest: Manifest) -> None:
    """Spelling, and no file twice even where a file system ignores case."""
    found: set[str] = set()
    entries = [manifest.tokenizer.file, *(file for artifact in manifest.artifacts for file in artifact.files)]
    for entry in entries:
        check_relative_path(entry.path)
        if entry.path.casefold() in found:
            _refuse("artifacts", f"the file {entry.path!r} is there twice")
        found.add(entry.path.casefold())


def _check_tensors(where: str, artifact: ArtifactEntry, manifest: Manifest) -> None:
    for kind, tensors, dtype in (("inputs", artifact.inputs, "int32"), ("outputs", artifact.outputs, "float32")):
        _check_distinct(f"{where}.{kind}", [tensor.name for tensor in tensors])
        for tensor in tensors:
            if not tensor.name.isprintable():
                _refuse(f"{where}.{kind}", f"the name {tensor.name!r} holds characters that cannot be printed")
            if tensor.dtype != dtype:
                _refuse(f"{where}.{kind}", f"{tensor.name!r} is {tensor.dtype}, not {dtype}")
    for tensor in artifact.inputs:
        if tensor.name not in INPUT_NAMES:
            _refuse(f"{where}.inputs", f"unknown input {tensor.name!r} (known: {', '.join(INPUT_NAMES)})")
        if len(tensor.shape) != 2:
            _refuse(f"{where}.inputs", f"{tensor.name!r} has {len(tensor.shape)} axes, not [batch, tokens]")
        if not artifact.buckets and tensor.shape != (None, None):
            _refuse(f"{where}.inputs", f"{tensor.name!r} has the shape {list(tensor.shape)} but no buckets")
    if INPUT_NAMES[0] not in {tensor.name for tensor in artifact.inputs}:
        _refuse(f"{where}.inputs", f"no input {INPUT_NAMES[0]!r}")
    _check_result(f"{where}.outputs[0]", artifact.outputs[0], manifest)


def _check_result(where: str, result: Tensor, manifest: Manifest) -> None:
    rank = OUTPUT_RANK[manifest.task]
    if len(result.shape) != rank:
        _refuse(where, f"{result.name!r} has {len(result.shape)} axes where the task {manifest.task!r} gives {rank}")
    width = result.shape[-1]
    if width is None:
        _refuse(where, f"the last axis of {result.name!r} has no fixed size")
    if manifest.task != "embed" and width != len(manifest.labels):
        _refuse(where, f"the last axis of {result.name!r} is {width} but there are {len(manifest.labels)} labels")


def _check_buckets(where: str, artifact: ArtifactEntry, max_tokens: int) -> None:
    buckets = artifact.buckets
    if any(left >= right for left, right in itertools.pairwise(buckets)):
        _refuse(f"{where}.buckets", f"{list(buckets)[:16]} do not ascend")
    if buckets and buckets[-1] < max_tokens:
        _refuse(
            f"{where}.buckets",
            f"the largest bucket is {buckets[-1]} tokens but texts may have {max_tokens} (tokenizer.max_tokens)",
        )


def _check_known_answer(where: str, answer: KnownAnswerEntry, artifact: ArtifactEntry, max_tokens: int) -> None:
    names = {tensor.name for tensor in artifact.inputs}
    if set(answer.feeds) != names:
        _refuse(f"{where}.feeds", f"feeds for {sorted(answer.feeds)} where the inputs are {sorted(names)}")
    shapes = set()
    for name, rows in answer.feeds.items():
        widths = {len(row) for row in rows}
        if len(widths) != 1 or 0 in widths:
            _refuse(f"{where}.feeds", f"the rows of {name!r} are missing, empty or of different lengths")
        most = MOST_FED[name]
        if any(not 0 <= value <= most for row in rows for value in row):
            _refuse(f"{where}.feeds", f"{name!r} has a value that is not in 0 … {most}")
        shapes.add((len(rows), widths.pop()))
    if len(shapes) != 1:
        _refuse(f"{where}.feeds", "the inputs have different shapes")
    batch, tokens = shapes.pop()
    if tokens > max_tokens:
        _refuse(f"{where}.feeds", f"{tokens} tokens, more than tokenizer.max_tokens, {max_tokens}")
    outputs = {tensor.name: tensor for tensor in artifact.outputs}
    if set(answer.outputs) != set(answer.shapes):
        _refuse(f"{where}.shapes", f"{sorted(answer.shapes)} where the outputs are {sorted(answer.outputs)}")
    if artifact.outputs[0].name not in answer.outputs:
        _refuse(f"{where}.outputs", f"no answer for {artifact.outputs[0].name!r}")
    for name, values in answer.outputs.items():
        if name not in outputs:
            _refuse(f"{where}.outputs", f"{name!r} is no output of the artifact")
        shape, declared = answer.shapes[name], outputs[name].shape
        if len(shape) != len(declared) or shape[0] != batch or (declared[-1] not in (None, shape[-1])):
            _refuse(f"{where}.shapes", f"{name!r} has the shape {list(shape)}, which does not fit {list(declared)}")
        if len(shape) == 3 and shape[1] != tokens:
            _refuse(f"{where}.shapes", f"{name!r} has the shape {list(shape)} for feeds of {tokens} tokens")
        if math.prod(shape) != len(values):
            _refuse(f"{where}.outputs", f"{name!r} has {len(values)} values for the shape {list(shape)}")
        if not _finite(values, limit=1e30):  # must also be finite as a float32
            _refuse(f"{where}.outputs", f"{name!r} has values that are not finite")
    if not _finite([answer.tolerance]):
        _refuse(f"{where}.tolerance", "not finite")


def _check_figures(manifest: Manifest, artifacts: set[tuple[str, str]]) -> None:
    for stage, metrics in manifest.quality.items():
        if not _finite(metrics.values()):
            _refuse(f"quality[{stage!r}]", "a value is not finite")
    for index, measurement in enumerate(manifest.measurements):
        where = f"measurements[{index}]"
        if (measurement.runtime, measurement.precision) not in artifacts:
            _refuse(where, f"of {measurement.runtime} in {measurement.precision}, which is not in the bundle")
        numbers = [value for value in msgspec.structs.astuple(measurement) if isinstance(value, int | float)]
        if not _finite(numbers) or min(numbers) < 0:
            _refuse(where, "a figure is negative or not finite")


def _finite(values: Iterable[Any], limit: float = math.inf) -> bool:
    return all(math.isfinite(value) and abs(value) <= limit for value in values)
