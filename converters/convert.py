"""The main job: a student from checkpoint to a bundle that fits its devices' budgets, with the proof.

    read → plan → prune → recover → freeze and export → evaluate on the real engines → budgets → report

Every arrow is a function of a module of its own; this one calls them in turn and keeps what each gives in a folder
beside the output (:mod:`~edgescribe.converters.stages`), so that an interrupted conversion is taken up again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InputError
from ..runtimes.registry import RUNTIMES
from ..sdk.bundle import Bundle
from ..sdk.bundle_writer import check_output
from ..sdk.measure import QUICK, Effort
from .advance import Advance, OnAdvance, part_of, unwatched
from .anatomy import Task
from .bundle_makers import bundle_maker_of
from .checkpoint import load_graph, save_graph, save_student
from .conversion_data import examples_of
from .conversion_proof import over_budget, prove
from .conversion_report import ConversionReport, TrainingCurve, training_curve
from .conversion_request import Request, read_request
from .output_errors import output_errors
from .plan import Plan
from .prune import prune
from .read import read_student
from .recipe import Recipe, recipe_from
from .recover import with_relu
from .recoveries import recovery_of
from .report import write_report
from .stages import Stages, check_stages, open_stages, put_into_place, recorded
from .student import Student
from .torch_graph import TorchGraph

SCORED_TEXTS = 1024
"""Training rows that units are scored on before pruning."""

ANSWERED_TEXTS = 64
"""Evaluation rows that known answers are chosen from."""


@dataclass(frozen=True)
class Conversion:
    """What came out.

    ``plan`` is None where the recipe was given or taken up; ``report_folder`` holds ``report.html`` and
    ``report.json``; ``over_budget`` has a line for each figure that exceeds what a device grants.
    """

    bundle: Bundle
    report: ConversionReport
    report_folder: Path
    plan: Plan | None
    over_budget: tuple[str, ...]

    @property
    def within_budget(self) -> bool:
        """Whether no figure is over any device's budget."""
        return not self.over_budget


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
    prefix: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    resume: bool = False,
    effort: Effort = QUICK,
    on_advance: OnAdvance = unwatched,
    warn: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a student and write bundle and report.

    Args:
        student: checkpoint folder or hub id.
        task: ``classify``, ``tag``, ``embed``, ``generate`` or ``summarize``.
        devices: profiles by name, ``host`` (this machine) or path; the bundle is to fit them all.
        train: data file to train on.
        evaluation: data file that serves for figures alone.
        out: folder of the bundle. It appears there when all is done; until then the stages lie in ``<out>.work``.
            ``report.html`` and ``report.json`` are written to ``<out>.report``.
        validation: data file that chooses the best state while training; a tenth of the training rows unless given.
        teacher: checkpoint to distil from; the unpruned student unless given.
        recipe: name, path or :class:`~edgescribe.converters.recipe.Recipe`; None takes the first on the ladder that
            is predicted to meet every budget.
        runtimes: which to make artifacts for.
        prefix: of a summariser, what is put before every text; None takes the recipe's, or what the checkpoint names.
        allow_pickle: also take weights from ``pytorch_model.bin``.
        force: replace an existing bundle, and throw interrupted work on it away.
        resume: take up the conversion that was interrupted.
        effort: how long each artifact is timed.
        on_advance: told each stage and how far it is.
        warn: told of bad rows that were left out.

    Raises:
        InputError: bad student, data, profile or recipe; ``out`` exists and ``force`` is not given; it cannot be
            written. Nothing half-written is left at ``out``.
        UsageError: no device, or an unknown runtime.
        EngineError: an engine is missing or computes wrongly.
        KeyboardInterrupt: interrupted; what was done is kept for ``resume``.
    """
    started = time.monotonic()
    target = Path(out)
    check_output(target, force)
    check_stages(target, resume, force)
    on_advance(Advance("reading", 0.0))
    request = read_request(
        student,
        task=task,
        devices=devices,
        train=train,
        evaluation=evaluation,
        validation=validation,
        teacher=teacher,
        recipe=_recorded_recipe(target) if resume and recipe is None else recipe,
        runtimes=runtimes,
        prefix=prefix,
        allow_pickle=allow_pickle,
        warn=warn,
    )
    on_advance(Advance("reading", 1.0, f"recipe {request.recipe.name}"))
    stages = open_stages(target, _fingerprint(request), resume=resume, force=force)
    graph, curves = _trained(request, stages, resume, on_advance)
    bundle = _exported(request, graph, stages, on_advance)
    report, bundle = prove(request, bundle, graph.student, curves, effort, started, on_advance)
    on_advance(Advance("reporting", 0.0))
    report_folder = target.with_name(target.name + ".report")
    with output_errors(report_folder):
        write_report(report, report_folder)
    check_output(target, force)
    put_into_place(bundle.folder, target)
    stages.remove()
    on_advance(Advance("reporting", 1.0))
    return Conversion(
        replace(bundle, folder=target.resolve()),
        report,
        report_folder,
        request.plan,
        tuple(over_budget(report.verdicts)),
    )


def _recorded_recipe(target: Path) -> Recipe:
    """The recipe that an interrupted conversion chose: a plan for this very machine may come out otherwise today."""
    found = recorded(target).get("recipe")
    if not isinstance(found, dict):
        raise InputError(f"the record of the interrupted work on {target} names no recipe; start anew with --force")
    return recipe_from(found, f"the record of the interrupted work on {target}")


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
    request: Request, stages: Stages, resume: bool, on_advance: OnAdvance
) -> tuple[TorchGraph, list[TrainingCurve]]:
    """Prune and recover, or take what an interrupted conversion had of it."""
    recipe, task = request.recipe, request.student.task
    if resume and stages.recovered.is_dir():
        curves = msgspec.json.decode(stages.curves.read_bytes(), type=list[TrainingCurve])
        return load_graph(stages.recovered, task), curves
    if resume and stages.pruned.is_dir():
        pruned = read_student(stages.pruned, task)
    else:
        pruned = _pruned(request, on_advance)
        save_student(pruned, stages.pruned)
    recovered = recovery_of(task)(
        pruned,
        request.teacher,
        recipe,
        request.train,
        request.validation,
        changed=recipe.changes(request.student),
        checkpoints=stages.training,
        resume=resume,
        on_advance=on_advance,
    )
    curves = [training_curve(name, result) for name, result in recovered.phases]
    with output_errors(stages.curves):
        stages.curves.write_bytes(msgspec.json.encode(curves))
    save_graph(recovered.graph, stages.recovered, {"recipe": recipe.as_dict(), "source": request.student.source})
    graph = recovered.graph
    graph.student = graph.student.with_state(graph.state())
    return graph, curves


def _pruned(request: Request, on_advance: OnAdvance) -> Student:
    recipe, student = request.recipe, request.student
    pruning = recipe.pruning_of(student)
    on_advance(Advance("pruning", 0.0))
    if not pruning.is_empty:
        few = request.train.part(range(min(len(request.train.texts), SCORED_TEXTS)))
        examples = examples_of(few, student, None, recipe.train_tokens, None, recipe.summary_tokens)
        texts = request.train.words(student) + request.validation.words(student)
        student = prune(student, pruning, examples, texts, part_of(on_advance, "pruning"))
    if recipe.relu:
        student = with_relu(student)
    kept, before = student.parameter_count(), request.student.parameter_count()
    on_advance(Advance("pruning", 1.0, f"{kept:,} of {before:,} weights stay"))
    return student


def _exported(request: Request, graph: TorchGraph, stages: Stages, on_advance: OnAdvance) -> Bundle:
    done = 0

    def artifact(name: str) -> None:
        nonlocal done
        on_advance(Advance("exporting", done / len(request.runtimes), name))
        done += 1

    on_advance(Advance("exporting", 0.0))
    limit, options = None, dict[str, Any]()
    if graph.student.task in ("generate", "summarize"):
        limit = min(request.recipe.max_tokens or graph.student.max_tokens, graph.student.max_tokens)
    if graph.student.task == "summarize":
        options["summary_tokens"] = request.recipe.summary_tokens
    if request.recipe.int8_cache and graph.student.task == "generate":
        options["cache_texts"] = request.train.texts
    bundle = bundle_maker_of(graph.student.task)(
        graph.student,
        {request.recipe.precision: graph},
        request.runtimes,
        stages.bundle,
        texts=request.evaluation.texts[:ANSWERED_TEXTS],
        source=request.student,
        recipe=request.recipe.as_dict(),
        seed=request.recipe.training.seed,
        data_sha256={
            "train": request.train.sha256,
            "validation": request.validation.sha256,
            "evaluation": request.evaluation.sha256,
        },
        name=stages.name,
        max_tokens=limit,
        force=True,
        on_artifact=artifact,
        **options,
    )
    on_advance(Advance("exporting", 1.0))
    return bundle
