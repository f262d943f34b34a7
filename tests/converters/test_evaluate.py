"""Evaluation of tiny real students in torch and, in fresh processes, on every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.converters.evaluate import (
    ArtifactEvaluation,
    EvaluationData,
    agreement,
    evaluate_artifact,
    evaluate_student,
)
from edgescribe.converters.make_bundle import make_bundle
from edgescribe.converters.metrics import ClassificationMetrics, EmbeddingMetrics
from edgescribe.converters.predict import predict
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training_data import Example, make_examples, make_tag_examples
from edgescribe.errors import BundleError, DataError
from edgescribe.sdk.measure import Effort

RUNTIMES = ("onnxruntime", "openvino", "litert")
SHORT = Effort(samples=4, seconds=0, warmup=1)


def examples_of(student: Student, texts: Sequence[str]) -> list[Example]:
    if student.task == "tag":
        return make_tag_examples(student, texts, [[n % 3 for n in range(len(text.split()))] for text in texts])
    labels = [n % 3 for n in range(len(texts))] if student.task == "classify" else None
    return make_examples(student, texts, labels)


@pytest.fixture
def evaluated(
    make_checkpoint: Callable[..., Any], sentences: list[str], tmp_path: Path
) -> Callable[..., tuple[TorchGraph, EvaluationData, Path]]:
    """A float graph of a task, data with labels that say nothing, and its bundle."""

    def make(task: Any, runtimes: Sequence[str] = RUNTIMES) -> tuple[TorchGraph, EvaluationData, Path]:
        folder, _ = make_checkpoint("bert", task)
        student = read_student(folder, task)
        graph = TorchGraph(student).eval()
        examples = examples_of(student, sentences)
        reference = tuple(predict(graph, examples)) if task == "embed" else ()
        bundle = make_bundle(
            student, {"fp32": graph}, runtimes, tmp_path / "bundle",
            texts=sentences, source=student, recipe={}, seed=0, data_sha256={},
        )  # fmt: skip
        return graph, EvaluationData(sentences, examples, reference), bundle.folder

    return make


def test_a_student_is_scored_on_what_torch_answers(evaluated: Callable[..., Any]) -> None:
    graph, data, _ = evaluated("classify", ("onnxruntime",))
    found = evaluate_student(graph, data)
    guesses = [int(output.argmax()) for output in predict(graph, data.examples)]
    right = [guess == int(example.labels[0]) for guess, example in zip(guesses, data.examples, strict=True)]
    assert isinstance(found, ClassificationMetrics)
    assert found.accuracy == pytest.approx(np.mean(right))
    assert [label.label for label in found.labels] == ["games", "net", "sound"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "tag", "embed"])
def test_engines_score_as_torch_does(task: str, evaluated: Callable[..., Any]) -> None:
    graph, data, bundle = evaluated(task)
    wanted = evaluate_student(graph, data).values()
    told: list[float] = []
    found = [
        evaluate_artifact(bundle, runtime, "fp32", data, effort=SHORT, on_progress=told.append) for runtime in RUNTIMES
    ]
    for each in found:
        assert each.metrics.values() == pytest.approx(wanted, abs=1e-4), each.name
        assert each.process.samples >= 4
        assert each.process.tokens == 32
        assert each.process.peak_rss_mib > 10
        assert each.process.effective.runtime == each.runtime
    assert all(0 <= part <= 1 for part in told)
    (alike,) = agreement(found)
    assert alike.runtimes == RUNTIMES
    assert alike.equal_predictions == pytest.approx(1)
    assert alike.conforms


def test_tokens_cut_otherwise_are_refused(evaluated: Callable[..., Any]) -> None:
    graph, data, bundle = evaluated("classify", ("onnxruntime",))
    shorter = make_examples(graph.student, data.texts, [0] * len(data.texts), max_tokens=5)
    with pytest.raises(BundleError, match="splits text 1 otherwise"):
        evaluate_artifact(bundle, "onnxruntime", "fp32", EvaluationData(data.texts, shorter), effort=SHORT)


def test_an_artifact_that_is_not_there_is_refused(evaluated: Callable[..., Any]) -> None:
    _, data, bundle = evaluated("classify", ("onnxruntime",))
    with pytest.raises(BundleError, match="no artifact for litert"):
        evaluate_artifact(bundle, "litert", "fp32", data, effort=SHORT)


def test_data_without_labels_is_refused(evaluated: Callable[..., Any]) -> None:
    graph, data, _ = evaluated("classify", ("onnxruntime",))
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate_student(graph, replace(data, examples=make_examples(graph.student, data.texts, None)))
    with pytest.raises(DataError, match="no usable rows"):
        evaluate_student(graph, EvaluationData([], []))


def test_embeddings_need_a_reference(evaluated: Callable[..., Any]) -> None:
    graph, data, _ = evaluated("embed", ("onnxruntime",))
    with pytest.raises(DataError, match="to compare them with"):
        evaluate_student(graph, replace(data, reference=()))
    assert isinstance(evaluate_student(graph, data), EmbeddingMetrics)


@pytest.mark.parametrize(("moved", "conforms"), [(0, True), (1, True), (2, False)])
def test_agreement_counts_predictions_and_points(moved: int, conforms: bool, evaluated: Callable[..., Any]) -> None:
    _, data, bundle = evaluated("classify", ("onnxruntime",))
    first = evaluate_artifact(bundle, "onnxruntime", "fp32", data, effort=SHORT)
    metrics = first.metrics
    assert isinstance(metrics, ClassificationMetrics)
    # The same predictions for 200 texts, then some of them changed to the next label.
    outputs = np.tile(first.outputs, (20, 1))
    changed = outputs.copy()
    changed[:moved] = np.roll(changed[:moved], 1, axis=1)

    def like(runtime: str, logits: np.ndarray, points: float) -> ArtifactEvaluation:
        from msgspec.structs import replace as changed_struct

        scored = changed_struct(metrics, accuracy=metrics.accuracy - points / 100)
        return replace(first, runtime=runtime, outputs=logits, metrics=scored)

    (found,) = agreement([like("onnxruntime", outputs, 0), like("litert", changed, 0.5 * moved)])
    assert found.equal_predictions == pytest.approx(1 - moved / 200)
    assert found.spread_points == pytest.approx(0.5 * moved)
    assert found.conforms is conforms
    assert agreement([first]) == ()
