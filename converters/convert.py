"""The main job: a student from checkpoint to a bundle that fits its devices' budgets, with the proof.

    read → plan → prune → recover → freeze and export → evaluate on the real engines → budgets → report

Every arrow is a function of a module of its own; this one calls them in turn and keeps what each gives in a folder
beside the output (:mod:`~edgescribe.converters.stages`), so that an interrupted conversion is taken up again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..device_profiles.budgets import over
from ..device_profiles.profiles import load_profile
from ..device_profiles.probe import probe
from ..device_profiles.schema import DeviceProfile
from ..errors import OutputError, UsageError
from ..sdk.budget_check import BudgetReport, check_budget
from ..sdk.bundle import Bundle
from ..sdk.measure import QUICK, Effort, machine_text
from .anatomy import Task
from .checkpoint import load_graph, save_graph, save_student
from .conversion_data import Texts, check_labels, examples_of, hold_out, read_texts
from .conversion_report import ConversionReport, Stage, TrainingCurve, artifact_stage, training_curve
from .evaluate import (
    ArtifactEvaluation,
    EvaluationData,
    agreement,
    evaluate_artifact,
    evaluate_student,
)
from .make_bundle import add_results, make_bundle
from .metrics import Metrics
from .plan import Plan, make_plan
from .predict import predict
from .prune import prune
from .read import read_student
from .recipe import Recipe, read_recipe
from .recover import recover, with_relu
from .report import write_report
from .stages import Stages, open_stages
from .student import Student
from .torch_graph import TorchGraph
from .training import Progress

RUNTIMES = ("onnxruntime", "openvino", "litert")


@dataclass(frozen=True)
class Advance:
    """Where a conversion is: the stage in words, the part of it that is done (0 to 1), and what is worth saying."""

    stage: str
    fraction: float
    detail: str = ""


OnAdvance = Callable[[Advance], None]


@dataclass(frozen=True)
class Conversion:
    """What came out. ``within_budget``: no device's budget is exceeded by the artifact that runs there."""

    bundle: Bundle
    report: ConversionReport
    plan: Plan | None
    within_budget: bool


@dataclass(frozen=True)
class Request:
    """What is to be converted, read and checked: everything that can be refused is refused before work starts."""

    student: Student
    teacher: Student
    devices: tuple[DeviceProfile, ...]
    recipe: Recipe
    plan: Plan | None
    train: Texts
    validation: Texts
    evaluation: Texts
    runtimes: tuple[str, ...]


def read_request(
    student: str | Path,
    *,
    task: Task,
    devices: Sequence[str | Path],
    train: str | Path,
    evaluation: str | Path,
    validation: str | Path | None = None,
    teacher: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    allow_pickle: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Request:
    """Read the student, data, devices and recipe of a conversion; see :func:`convert` for the arguments.

    Raises:
        InputError: a student, data file, profile or recipe that cannot be used.
        UsageError: no device, or a runtime that is not known.
    """
    if not devices:
        raise UsageError("name at least one device profile (edgescribe devices list)")
    strange = sorted(set(runtimes) - set(RUNTIMES))
    if strange or not runtimes:
        raise UsageError(f"runtimes are {', '.join(RUNTIMES)}; got {', '.join(strange) or 'none'}")
    profiles = tuple(load_profile(device) for device in devices)
    read = read_student(student, task, allow_pickle=allow_pickle)
    guide = read if teacher is None else read_student(teacher, task, allow_pickle=allow_pickle)
    if guide.labels != read.labels:
        raise UsageError(
            f"teacher and student name other classes, or in another order: {list(guide.labels)[:5]} and "
            f"{list(read.labels)[:5]}; they must agree"
        )
    train_texts = read_texts(Path(train), task, warn)
    evaluation_texts = read_texts(Path(evaluation), task, warn)
    if validation is not None:
        validation_texts = read_texts(Path(validation), task, warn)
    else:
        train_texts, validation_texts = hold_out(train_texts, seed=0)
    if task != "embed":
        for texts, path in ((train_texts, train), (validation_texts, validation or train), (evaluation_texts, evaluation)):
            check_labels(texts, read.labels, Path(path))
    plan = None
    if recipe is None:
        plan = make_plan(read, profiles)
        recipe = plan.recipe
    elif not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    return Request(
        read, guide, profiles, recipe, plan, train_texts, validation_texts, evaluation_texts, tuple(runtimes)
    )


def convert(
    student: str | Path,
    *,
    task: Task,
    devices: Sequence[str | Path],
    train: str | Path,
    evaluation: str | Path,
    out: str | Path,
    validation: str | Path | None = None,
    teacher: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    allow_pickle: bool = False,
    force: bool = False,
    resume: bool = False,
    effort: Effort = QUICK,
    on_advance: OnAdvance | None = None,
    warn: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a student and write bundle and report.

    Args:
        student: checkpoint folder or hub id.
        task: ``classify``, ``tag`` or ``embed``.
        devices: profiles by name, ``host`` (this machine) or path; the bundle is to fit them all.
        train, evaluation: data files; ``validation`` chooses the best state while training (a tenth of the training
            rows unless given). The evaluation rows serve for figures alone.
        out: folder of the bundle; ``report.html`` and ``report.json`` are written beside it in ``<out>.report``.
        teacher: checkpoint to distil from; the unpruned student unless given.
        recipe: name, path or :class:`~edgescribe.converters.recipe.Recipe`; None takes the first on the ladder that
            is predicted to meet every budget.
        resume: take up the conversion that was interrupted; ``force`` replaces an existing bundle.
        effort: how long each artifact is timed.

    Raises:
        InputError: bad student, data, profile or recipe; ``out`` exists and ``force`` is not given.
        EngineError: an engine is missing or computes wrongly.
    """
    target = Path(out)
    if target.exists() and not force:
        raise OutputError(f"{target} exists already; pass --force to replace it, or choose another --out")
    started = time.monotonic()
    advance = on_advance or (lambda _: None)
    advance(Advance("reading", 0.0))
    request = read_request(
        student, task=task, devices=devices, train=train, evaluation=evaluation, validation=validation,
        teacher=teacher, recipe=recipe, runtimes=runtimes, allow_pickle=allow_pickle, warn=warn,
    )  # fmt: skip
    stages = open_stages(target, _fingerprint(request), resume)
    graph, curves = _trained(request, stages, resume, advance)
    advance(Advance("exporting", 0.0))
    data_hashes = {
        "train": request.train.sha256,
        "validation": request.validation.sha256,
        "evaluation": request.evaluation.sha256,
    }
    bundle = make_bundle(
        graph.student,
        {request.recipe.precision: graph},
        request.runtimes,
        target,
        texts=request.evaluation.texts[:64],
        source=request.student,
        recipe=request.recipe.as_dict(),
        seed=request.recipe.training.seed,
        data_sha256=data_hashes,
        force=force,
    )
    report, bundle = _proof(request, bundle, graph, curves, effort, started, advance)
    advance(Advance("reporting", 0.5))
    write_report(report, target.with_name(target.name + ".report"))
    stages.remove()
    advance(Advance("reporting", 1.0))
    within = not any(over(verdict.findings) for verdict in report.verdicts)
    return Conversion(bundle, report, request.plan, within)


def _fingerprint(request: Request) -> dict[str, object]:
    """What must be the same for an interrupted conversion to go on."""
    return {
        "student": request.student.sha256,
        "teacher": request.teacher.sha256,
        "recipe": request.recipe.as_dict(),
        "train": request.train.sha256,
        "validation": request.validation.sha256,
        "task": request.student.task,
    }


def _trained(
    request: Request, stages: Stages, resume: bool, advance: OnAdvance
) -> tuple[TorchGraph, list[TrainingCurve]]:
    """Prune and recover, or take what an interrupted conversion had of it."""
    recipe, task = request.recipe, request.student.task
    if resume and stages.recovered.is_dir():
        return load_graph(stages.recovered, task), []
    pruning = recipe.pruning_of(request.student)
    changed = recipe.relu or any(size is not None for size in (pruning.layers, pruning.neurons, pruning.heads))
    if resume and stages.pruned.is_dir():
        pruned = read_student(stages.pruned, task)
    else:
        advance(Advance("pruning", 0.0))
        pruned = request.student
        if not pruning.is_empty:
            count = min(len(request.train.texts), 1024)
            examples = examples_of(request.train.part(range(count)), request.student, None, recipe.train_tokens)
            pruned = prune(request.student, pruning, examples, request.train.texts + request.validation.texts)
        if recipe.relu:
            pruned = with_relu(pruned)
        save_student(pruned, stages.pruned)
        advance(Advance("pruning", 1.0))

    def report(phase: str, progress: Progress) -> None:
        score = "" if progress.score is None else f", validation {progress.score:.4f}"
        name = "recovering in float" if phase == "float" else "training on the grid"
        advance(Advance(name, progress.step / progress.steps, f"loss {progress.loss:.3f}{score}"))

    recovered = recover(
        pruned,
        request.teacher,
        recipe,
        request.train,
        request.validation,
        changed=changed,
        max_tokens=recipe.train_tokens,
        checkpoints=stages.training,
        resume=resume,
        report=report,
    )
    save_graph(recovered.graph, stages.recovered)
    graph = recovered.graph
    graph.student = graph.student.with_state(graph.state())
    return graph, [training_curve(name, result) for name, result in recovered.phases]


def _proof(
    request: Request,
    bundle: Bundle,
    graph: TorchGraph,
    curves: list[TrainingCurve],
    effort: Effort,
    started: float,
    advance: OnAdvance,
) -> tuple[ConversionReport, Bundle]:
    """Evaluate teacher, student and every artifact, hold the budgets against them, and write it all into the bundle."""
    student = request.student
    texts = request.evaluation.texts
    teacher_graph, student_graph = TorchGraph(request.teacher).eval(), TorchGraph(student).eval()
    reference = ()
    advance(Advance("evaluating the student", 0.0))
    if student.task == "embed":
        reference = tuple(predict(student_graph, examples_of(request.evaluation, student)))
    stages: list[Stage] = []
    if request.teacher is not student:
        data = EvaluationData(texts, examples_of(request.evaluation, request.teacher), reference)
        stages.append(_torch_stage("teacher", teacher_graph, evaluate_student(teacher_graph, data)))
        advance(Advance("evaluating the student", 0.4))
    data = EvaluationData(texts, examples_of(request.evaluation, student), reference)
    stages.append(_torch_stage("student", student_graph, evaluate_student(student_graph, data)))
    advance(Advance("evaluating the student", 1.0))
    data = EvaluationData(texts, examples_of(request.evaluation, graph.student), reference)
    evaluations: list[ArtifactEvaluation] = []
    artifacts = bundle.manifest.artifacts
    tokens = max(device.budgets[student.task].tokens for device in request.devices)
    for number, artifact in enumerate(artifacts):
        name = f"evaluating on {artifact.runtime}"

        def part(share: float, name: str = name) -> None:
            advance(Advance(name, share))

        evaluations.append(
            evaluate_artifact(
                bundle.folder, artifact.runtime, artifact.precision, data, tokens=tokens, effort=effort,
                on_progress=part,
            )
        )  # fmt: skip
        stages.append(artifact_stage(evaluations[number]))
    quality = {stage.name: stage.metrics for stage in stages if stage.metrics is not None}
    bundle = add_results(bundle, quality, [evaluation.process for evaluation in evaluations])
    verdicts: list[BudgetReport] = []
    for number, device in enumerate(request.devices):
        advance(Advance("holding budgets against it", number / len(request.devices)))
        verdicts.append(check_budget(bundle.folder, device, effort=effort))
    advance(Advance("holding budgets against it", 1.0))
    report = ConversionReport(
        name=bundle.manifest.name,
        task=student.task,
        family=bundle.manifest.family,
        stages=tuple(stages),
        verdicts=tuple(verdicts),
        agreements=agreement(evaluations),
        training=tuple(curves),
        recipe=request.recipe.as_dict(),
        provenance=bundle.manifest.provenance,
        machine=machine_text(probe()),
        rows={
            "train": len(request.train.texts),
            "validation": len(request.validation.texts),
            "evaluation": len(texts),
        },
        seconds=time.monotonic() - started,
    )
    return report, bundle


def _torch_stage(name: str, graph: TorchGraph, metrics: Metrics) -> Stage:
    count = graph.student.parameter_count()
    kind = "teacher" if name == "teacher" else "student"
    size = count * torch.finfo(torch.float32).bits / 8 / 2**20
    return Stage(name=name, kind=kind, metrics=metrics, size_mib=size, parameters=count)
