"""The proof of a conversion: teacher, student and every artifact evaluated, and budgets held against the result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from numpy import float32, int64
from numpy.typing import NDArray

from ..device_profiles.budgets import describe, over
from ..device_profiles.probe import probe
from ..sdk.budget_check import BudgetReport, check_budget
from ..sdk.bundle import Bundle
from ..sdk.measure import Effort, machine_text
from . import evaluate_summaries, evaluate_writing
from .advance import OnAdvance, part_of
from .conversion_data import Texts, examples_of
from .conversion_report import ConversionReport, Sample, Stage, TrainingCurve, artifact_stage
from .conversion_request import Request
from .evaluate import ArtifactEvaluation, EvaluationData, agreement, evaluate_artifact, metrics_of
from .make_bundle import add_results
from .metrics import Metrics
from .predict import predict
from .student import Student
from .torch_decoder import graph_of
from .torch_graph import TorchGraph
from .writing_data import encode_writing

MIB = 1 << 20


def prove(
    request: Request,
    bundle: Bundle,
    converted: Student,
    curves: Sequence[TrainingCurve],
    effort: Effort,
    started: float,
    on_advance: OnAdvance,
) -> tuple[ConversionReport, Bundle]:
    """Evaluate teacher, student and every artifact, hold the budgets against them, and write it into the bundle.

    Args:
        converted: the student that the bundle was made of.
        started: when the conversion began, by :func:`time.monotonic`.

    Raises:
        EngineError: an engine cannot run an artifact, or computes it wrongly.
        OutputError: the bundle cannot be written.
    """
    texts = request.evaluation.texts
    written: tuple[Sample, ...] = ()
    if request.student.task == "generate":
        stages, evaluations, written = _of_writer(request, bundle, converted, effort, on_advance)
    elif request.student.task == "summarize":
        stages, evaluations, written = _of_summarizer(request, bundle, effort, on_advance)
    else:
        stages, reference = _torch_stages(request, on_advance)
        data = EvaluationData(texts, examples_of(request.evaluation, converted), reference)
        evaluations = _artifacts(request, bundle, data, effort, on_advance)
    stages += [artifact_stage(evaluation) for evaluation in evaluations]
    quality = {stage.name: stage.metrics for stage in stages if stage.metrics is not None}
    bundle = add_results(bundle, quality, [evaluation.process for evaluation in evaluations])
    verdicts = _verdicts(request, bundle, effort, on_advance)
    report = ConversionReport(
        name=bundle.manifest.name,
        task=request.student.task,
        family=bundle.manifest.family,
        stages=tuple(stages),
        verdicts=verdicts,
        agreements=agreement(evaluations),
        training=tuple(curves),
        recipe=request.recipe.as_dict(),
        provenance=bundle.manifest.provenance,
        machine=machine_text(probe()),
        rows={
            "train": len(request.train.texts),
            "validation": len(request.validation.texts),
            "evaluation": _evaluated(request),
        },
        seconds=time.monotonic() - started,
        samples=written,
        notes=_notes(request, evaluations),
    )
    return report, bundle


def _evaluated(request: Request) -> int:
    """Texts that quality was found on."""
    count = len(request.evaluation.texts)
    return min(count, evaluate_summaries.EVALUATED_TEXTS) if request.student.task == "summarize" else count


def over_budget(verdicts: Sequence[BudgetReport]) -> list[str]:
    """One line for each figure that is over budget, naming the device."""
    return [f"{verdict.device}: {describe(finding)}" for verdict in verdicts for finding in over(verdict.findings)]


def evaluate_in_torch(
    student: Student, texts: Texts, reference: Sequence[NDArray[float32]], on_advance: OnAdvance, stage: str
) -> tuple[Metrics, list[NDArray[float32]]]:
    """Metrics and outputs of a student in torch; for ``embed`` without a reference, against itself."""
    examples = examples_of(texts, student)
    outputs = predict(TorchGraph(student), examples, on_progress=part_of(on_advance, stage))
    data = EvaluationData(texts.texts, examples, reference or tuple(outputs))
    return metrics_of(student.task, outputs, data, student.labels), outputs


def torch_stage(name: Literal["teacher", "student"], student: Student, metrics: Metrics) -> Stage:
    """A row of the report for a student in torch, in float32."""
    count = student.parameter_count()
    return Stage(name=name, kind=name, metrics=metrics, size_mib=count * 4 / MIB, parameters=count)


def _torch_stages(request: Request, on_advance: OnAdvance) -> tuple[list[Stage], tuple[NDArray[float32], ...]]:
    """Rows for teacher (where there is one of its own) and student; for ``embed``, the teacher's embeddings."""
    stages: list[Stage] = []
    reference: tuple[NDArray[float32], ...] = ()
    if request.teacher is not request.student:
        metrics, outputs = evaluate_in_torch(
            request.teacher, request.evaluation, (), on_advance, "evaluating the teacher"
        )
        stages.append(torch_stage("teacher", request.teacher, metrics))
        reference = tuple(outputs)
    metrics, outputs = evaluate_in_torch(
        request.student, request.evaluation, reference, on_advance, "evaluating the student"
    )
    stages.append(torch_stage("student", request.student, metrics))
    return stages, reference or tuple(outputs)


def _of_writer(
    request: Request, bundle: Bundle, converted: Student, effort: Effort, on_advance: OnAdvance
) -> tuple[list[Stage], list[ArtifactEvaluation], tuple[Sample, ...]]:
    """Rows for teacher and student, what the artifacts foresee, and what all write to the same beginnings."""
    writing = bundle.manifest.writing
    context = converted.max_tokens if writing is None else writing.context
    most = min(context, request.student.max_tokens)
    texts = evaluate_writing.evaluated_texts(converted, request.evaluation.texts, most)
    tokens = encode_writing(converted, texts, context)
    stages: list[Stage] = []
    reference: list[NDArray[int64]] = []
    for name, student in (("teacher", request.teacher), ("student", request.student)):
        if name == "teacher" and student is request.student:
            continue
        part = part_of(on_advance, f"evaluating the {name}")
        metrics, guesses = evaluate_writing.evaluate_in_torch(graph_of(student), texts, reference, part)
        stages.append(torch_stage("teacher" if name == "teacher" else "student", student, metrics))
        same = student.tokenizer.get_vocab() == converted.tokenizer.get_vocab()
        reference = reference or (guesses if same else [])
    data = evaluate_writing.WritingData(texts, tokens, reference)
    asked = max(device.budgets[request.student.task].tokens for device in request.devices)
    evaluations = []
    for artifact in bundle.manifest.artifacts:
        part = part_of(on_advance, f"evaluating on {artifact.runtime}")
        part(0.0)
        evaluations.append(
            evaluate_writing.evaluate_writer_artifact(
                bundle.folder,
                artifact.runtime,
                artifact.precision,
                data,
                tokens=max(2, min(asked, context // 2)),
                effort=effort,
                on_progress=part,
            )
        )
    names = [(artifact.runtime, artifact.precision) for artifact in bundle.manifest.artifacts]
    part = part_of(on_advance, "writing samples")
    return stages, evaluations, evaluate_writing.samples(request.student, bundle.folder, names, texts, part)


def _of_summarizer(
    request: Request, bundle: Bundle, effort: Effort, on_advance: OnAdvance
) -> tuple[list[Stage], list[ArtifactEvaluation], tuple[Sample, ...]]:
    """Rows for the baseline, teacher and student, what the artifacts come to, and some of what all wrote."""
    source_tokens, summary_tokens = evaluate_summaries.contexts_of(bundle)
    data = evaluate_summaries.summary_data(request.evaluation, source_tokens, summary_tokens)
    stages = [evaluate_summaries.baseline_stage(data)]
    written: dict[str, Sequence[str]] = {}
    if request.teacher is not request.student:
        part = part_of(on_advance, "evaluating the teacher")
        metrics, written["teacher"] = evaluate_summaries.evaluate_in_torch(graph_of(request.teacher), data, part)
        stages.append(torch_stage("teacher", request.teacher, metrics))
    part = part_of(on_advance, "evaluating the student")
    metrics, unpruned = evaluate_summaries.evaluate_in_torch(graph_of(request.student), data, part)
    stages.append(torch_stage("student", request.student, metrics))
    written["student"] = unpruned
    data = replace(data, unpruned=unpruned)
    asked = max(device.budgets[request.student.task].tokens for device in request.devices)
    evaluations = []
    for artifact in bundle.manifest.artifacts:
        part = part_of(on_advance, f"evaluating on {artifact.runtime}")
        part(0.0)
        found = evaluate_summaries.evaluate_summarizer_artifact(
            bundle,
            artifact.runtime,
            artifact.precision,
            data,
            tokens=max(2, min(asked, source_tokens)),
            effort=effort,
            on_progress=part,
        )
        evaluations.append(found)
        written[found.name] = found.texts
    return stages, evaluations, evaluate_summaries.samples(data, written)


def _artifacts(
    request: Request, bundle: Bundle, data: EvaluationData, effort: Effort, on_advance: OnAdvance
) -> list[ArtifactEvaluation]:
    tokens = max(device.budgets[request.student.task].tokens for device in request.devices)
    found = []
    for artifact in bundle.manifest.artifacts:
        part = part_of(on_advance, f"evaluating on {artifact.runtime}")
        part(0.0)
        found.append(
            evaluate_artifact(
                bundle.folder,
                artifact.runtime,
                artifact.precision,
                data,
                tokens=tokens,
                effort=effort,
                on_progress=part,
            )
        )
    return found


def _verdicts(
    request: Request, bundle: Bundle, effort: Effort, on_advance: OnAdvance
) -> tuple[BudgetReport, ...]:
    verdicts = []
    for device in request.devices:
        part = part_of(on_advance, f"checking the budget of {device.id}")
        part(0.0)
        verdicts.append(check_budget(bundle.folder, device, effort=effort, on_progress=part))
    return tuple(verdicts)


def _notes(request: Request, evaluations: Sequence[ArtifactEvaluation]) -> tuple[str, ...]:
    notes = []
    if request.plan is not None and not request.plan.fits:
        notes.append(
            f"No recipe was predicted to fit every budget; the harshest, {request.recipe.name}, was taken."
        )
    unseen = sorted(set(request.student.labels) - set(request.evaluation.names()))
    if unseen and request.student.task != "embed":
        notes.append(f"The evaluation data has no example of: {', '.join(unseen)}.")
    notes += [
        f"{found.precision}: runtimes differ by {found.spread_points:.2f} points, which is more than they should."
        for found in agreement(evaluations)
        if not found.conforms
    ]
    return tuple(notes)
