"""Evaluating a student in torch, and each artifact on its own engine in a fresh process of the device side.

Accuracy and speed come from the same code of :mod:`edgescribe.sdk.measured_process`, so that what is fast and what
is right are one thing. Conformance is judged here too: artifacts of one precision must agree across runtimes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, DataError
from ..sdk.measure import QUICK, Effort, ProcessReport, measure_process, outputs_of
from ..sdk.student import softmax
from .anatomy import Task
from .metrics import Metrics, SummaryMetrics, WritingMetrics, classification_metrics, embedding_metrics
from .predict import predict
from .torch_graph import TorchGraph
from .training_data import Example

CONFORMANCE_POINTS = 0.5
"""How many points (hundredths) the task's metric may differ between runtimes."""


@dataclass(frozen=True)
class EvaluationData:
    """Texts with the examples made of them for the student (:func:`~.training_data.make_examples`), in one order.

    ``reference``: for ``embed``, the embedding float32 ``[W]`` of each text that the student's is compared with.
    """

    texts: Sequence[str]
    examples: Sequence[Example]
    reference: Sequence[NDArray[np.float32]] = ()


@dataclass(frozen=True)
class ArtifactEvaluation:
    """What one artifact gave on its engine.

    Attributes:
        runtime: the artifact's runtime.
        precision: its precision.
        metrics: how good its answers are.
        outputs: float32 logits ``[N, labels]`` of each text (``tag``: each labelled token), embeddings ``[N, W]``, or
            of a writer or summariser the likeliest tokens ``[N, 1]``.
        process: latency, memory and start-up figures of a process that loads and runs it.
        texts: of a summariser, what it wrote of each text.
    """

    runtime: str
    precision: str
    metrics: Metrics
    outputs: NDArray[np.float32]
    process: ProcessReport
    texts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``<runtime>/<precision>``, as the manifest's ``quality`` calls it."""
        return f"{self.runtime}/{self.precision}"


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How far the artifacts of one precision agree across runtimes.

    Attributes:
        precision: theirs.
        runtimes: which were compared; two or more.
        equal_predictions: least share of equal predictions of any two of them (``embed``: least mean cosine).
        spread_points: largest difference of the task's metric between any two, in points (hundredths).
        conforms: the spread is within 0.5 points.
    """

    precision: str
    runtimes: tuple[str, ...]
    equal_predictions: float
    spread_points: float
    conforms: bool


def evaluate_student(graph: TorchGraph, data: EvaluationData) -> Metrics:
    """Metrics of a student or teacher in torch.

    ``data.examples`` must be made for this graph's own student.

    Raises:
        DataError: nothing in ``data`` is labelled, or ``embed`` has no reference.
    """
    return metrics_of(graph.student.task, predict(graph, data.examples), data, graph.student.labels)


def metrics_of(
    task: Task, outputs: Sequence[NDArray[np.float32]], data: EvaluationData, labels: Sequence[str]
) -> Metrics:
    """Metrics of each text's output: logits ``[labels]``, ``[T, labels]`` for ``tag``, or an embedding ``[W]``.

    Raises:
        DataError: nothing in ``data`` is labelled, or ``embed`` has no reference.
    """
    if task == "embed":
        if len(data.reference) != len(outputs):
            raise DataError(
                f"{len(outputs)} embeddings and {len(data.reference)} to compare them with; "
                "give the reference's embedding of every text"
            )
        return embedding_metrics(np.stack(list(outputs)), np.stack(list(data.reference)))
    rows, numbers = _labelled(outputs, data.examples)
    return classification_metrics(softmax(rows), numbers, labels)


def evaluate_artifact(
    bundle: str | Path,
    runtime: str,
    precision: str,
    data: EvaluationData,
    *,
    threads: int = 0,
    tokens: int = 128,
    effort: Effort = QUICK,
    on_progress: Callable[[float], None] | None = None,
) -> ArtifactEvaluation:
    """Evaluate and measure one artifact of a bundle on its engine, in fresh processes of the device side.

    One process answers every text; another is timed at ``tokens`` tokens (or as many as the student reads).

    Raises:
        BundleError: the bundle lacks the artifact, or splits the texts otherwise than ``data.examples`` are.
        EngineError: the engine is missing, cannot run the artifact or computes it wrongly.
        DataError: nothing in ``data`` is labelled.
    """
    from ..sdk.bundle import read_bundle

    manifest = read_bundle(bundle).manifest

    def part(share: float, from_: float) -> None:
        if on_progress is not None:
            on_progress(from_ + share / 2)

    found = outputs_of(bundle, data.texts, runtime, precision, threads=threads, on_progress=lambda x: part(x, 0.0))
    rows = _by_text(found.values, found.lengths, manifest.task, data, bundle)
    process = measure_process(
        bundle,
        runtime,
        precision,
        threads=threads,
        tokens=min(tokens, manifest.tokenizer.max_tokens),
        effort=effort,
        texts=[text for text in data.texts[:64] if text.strip()],
        on_progress=lambda x: part(x, 0.5),
    )
    kept = found.values if manifest.task != "tag" else _labelled(rows, data.examples)[0]
    return ArtifactEvaluation(
        runtime=runtime,
        precision=precision,
        metrics=metrics_of(manifest.task, rows, data, manifest.labels),
        outputs=kept,
        process=process,
    )


def agreement(evaluations: Sequence[ArtifactEvaluation]) -> tuple[Agreement, ...]:
    """How far runtimes agree, for each precision that two or more artifacts have."""
    found = []
    for precision in dict.fromkeys(each.precision for each in evaluations):
        group = [each for each in evaluations if each.precision == precision]
        if len(group) < 2:
            continue
        scores = [each.metrics.score for each in group]
        spread = 100 * (max(scores) - min(scores))
        found.append(
            Agreement(
                precision=precision,
                runtimes=tuple(each.runtime for each in group),
                equal_predictions=min(_alike(a, b) for a, b in combinations(group, 2)),
                spread_points=spread,
                conforms=spread <= CONFORMANCE_POINTS + 1e-9,  # 2 of 400 texts are 0.5 points
            )
        )
    return tuple(found)


def _alike(a: ArtifactEvaluation, b: ArtifactEvaluation) -> float:
    if isinstance(a.metrics, WritingMetrics | SummaryMetrics):
        return float((a.outputs == b.outputs).mean())
    if a.metrics.values().keys() >= {"accuracy"}:
        return float((a.outputs.argmax(axis=-1) == b.outputs.argmax(axis=-1)).mean())
    norms = np.linalg.norm(a.outputs, axis=-1) * np.linalg.norm(b.outputs, axis=-1)
    return float(((a.outputs * b.outputs).sum(axis=-1) / np.maximum(norms, 1e-12)).mean())


def _by_text(
    values: NDArray[np.float32], lengths: NDArray[np.int64], task: str, data: EvaluationData, bundle: str | Path
) -> list[NDArray[np.float32]]:
    wanted = [len(example.ids) for example in data.examples]
    if lengths.tolist() != wanted:
        pairs = enumerate(zip(lengths.tolist(), wanted, strict=False))
        place = next((number for number, (ours, theirs) in pairs if ours != theirs), min(len(wanted), len(lengths)))
        raise BundleError(
            f"{bundle}: its tokenizer splits text {place + 1} otherwise than the student's, so the answers cannot be "
            "compared; make the bundle and the examples from the same student and with the same longest text"
        )
    if task != "tag":
        return list(values)
    return np.split(values, np.cumsum(lengths)[:-1])


def _labelled(
    outputs: Sequence[NDArray[np.float32]], examples: Sequence[Example]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of logits that have a label, with their labels."""
    rows, numbers = [], []
    for output, example in zip(outputs, examples, strict=True):
        logits = output if output.ndim == 2 else output[None]
        known = example.labels >= 0
        rows.append(logits[known])
        numbers.append(example.labels[known])
    if not rows:
        raise DataError("there is nothing to evaluate on: the data has no usable rows")
    return np.concatenate(rows), np.concatenate(numbers)
