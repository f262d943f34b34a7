"""Evaluating what lies on disk: a checkpoint in torch, or every artifact of a bundle on its own engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy import float32
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import UsageError
from ..sdk.bundle import Bundle, read_bundle
from ..sdk.bundle_files import MANIFEST_NAME
from ..sdk.measure import QUICK, Effort
from . import evaluate_summaries
from .advance import Advance, OnAdvance, part_of, unwatched
from .anatomy import Task
from .checkpoint import load_graph, task_of
from .conversion_data import Texts, check_labels, examples_of, read_texts
from .conversion_report import Stage, artifact_stage
from .evaluate import Agreement, EvaluationData, agreement, evaluate_artifact, metrics_of
from .evaluate_writing import WritingData, evaluate_in_torch, evaluate_writer_artifact, evaluated_texts
from .predict import predict
from .read import read_student
from .student import Student
from .summary_data import SUMMARY_TOKENS
from .torch_decoder import graph_of
from .torch_graph import TorchGraph
from .writing_data import encode_writing

MIB = 1 << 20

TIMED_TOKENS = 512
"""Tokens of the source behind which a summariser's artifacts are timed, as in the devices' budgets."""

MOST_SOURCE_TOKENS = 1024
"""Tokens of a source that a checkpoint without a limit of its own reads."""


@dataclass(frozen=True)
class Evaluation:
    """What was found: one row for a checkpoint, or one for each artifact and how far these agree."""

    name: str
    task: Task
    texts: int
    stages: tuple[Stage, ...]
    agreements: tuple[Agreement, ...] = ()


def evaluate(
    path: str | Path,
    evaluation: str | Path,
    *,
    task: Task | None = None,
    reference: str | Path | None = None,
    runtimes: Sequence[str] = (),
    allow_pickle: bool = False,
    effort: Effort = QUICK,
    on_advance: OnAdvance = unwatched,
    warn: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score a checkpoint (also one with grids, and a hub id) or a bundle on a data file.

    Args:
        path: a checkpoint or a bundle.
        evaluation: the data file.
        task: what a checkpoint is to do; what it was made for unless given. A bundle's task is its own.
        reference: for ``embed``, the checkpoint whose embeddings are the measure.
        runtimes: a bundle's artifacts for these alone; all unless given.
        effort: how long each artifact is timed.

    Raises:
        InputError: a checkpoint, bundle or data file that cannot be used.
        UsageError: the task is not known, or ``embed`` without a reference.
        EngineError: an engine is missing or computes wrongly.
    """
    folder = Path(path)
    found: Task
    on_advance(Advance("reading", 0.0))
    bundle = read_bundle(folder) if (folder / MANIFEST_NAME).is_file() else None
    if bundle is not None:
        found = bundle.manifest.task
        if task not in (None, found):
            raise UsageError(f"{path} is a bundle for {found}, and the task given is {task}")
    else:
        if task is None and not folder.is_dir():
            raise UsageError(f"{path} is no folder here; to read it from a hub, say what it is to do (--task)")
        found = task or task_of(folder)
    texts = read_texts(Path(evaluation), found, warn)
    goals = _goals(texts, found, reference, allow_pickle, on_advance)
    if found == "summarize":
        return _of_summaries(path, bundle, texts, runtimes, allow_pickle, effort, on_advance)
    if found == "generate":
        return _of_writing(folder, bundle, texts, runtimes, effort, on_advance)
    if bundle is not None:
        check_labels(texts, bundle.manifest.labels, Path(evaluation))
        return _of_bundle(bundle, found, texts, goals, runtimes, effort, on_advance)
    graph = load_graph(folder, found) if folder.is_dir() and not allow_pickle else None
    if graph is None:
        graph = TorchGraph(read_student(path, found, allow_pickle=allow_pickle))
    check_labels(texts, graph.student.labels, Path(evaluation))
    on_advance(Advance("reading", 1.0))
    return _of_graph(graph, texts, goals, on_advance)


def _goals(
    texts: Texts, task: Task, reference: str | Path | None, allow_pickle: bool, on_advance: OnAdvance
) -> tuple[NDArray[float32], ...]:
    if task != "embed":
        return ()
    if reference is None:
        raise UsageError("embeddings are measured against another checkpoint's: name one (--reference)")
    student = read_student(reference, "embed", allow_pickle=allow_pickle)
    return tuple(
        predict(TorchGraph(student), examples_of(texts, student), on_progress=part_of(on_advance, "the reference"))
    )


def _of_graph(
    graph: TorchGraph, texts: Texts, goals: Sequence[NDArray[float32]], on_advance: OnAdvance
) -> Evaluation:
    student = graph.student
    examples = examples_of(texts, student)
    on_advance(Advance("evaluating in torch", 0.0))
    outputs = predict(graph, examples, on_progress=part_of(on_advance, "evaluating in torch"))
    metrics = metrics_of(student.task, outputs, EvaluationData(texts.texts, examples, goals), student.labels)
    count = student.parameter_count()
    name = "torch/" + graph.precision
    stage = Stage(name=name, kind="student", metrics=metrics, size_mib=count * 4 / MIB, parameters=count)
    return Evaluation(student.source, student.task, len(texts.texts), (stage,))


def _of_bundle(
    bundle: Bundle,
    task: Task,
    texts: Texts,
    goals: Sequence[NDArray[float32]],
    runtimes: Sequence[str],
    effort: Effort,
    on_advance: OnAdvance,
) -> Evaluation:
    manifest = bundle.manifest
    chosen = [each for name in runtimes or (None,) for each in bundle.artifacts(name)]
    data = EvaluationData(texts.texts, examples_of(texts, _tokenizing_student(bundle, task)), tuple(goals))
    evaluations = []
    on_advance(Advance("reading", 1.0))
    for artifact in chosen:
        part = part_of(on_advance, f"evaluating on {artifact.runtime}")
        part(0.0)
        evaluations.append(
            evaluate_artifact(
                bundle.folder, artifact.runtime, artifact.precision, data, effort=effort, on_progress=part
            )
        )
    stages = tuple(artifact_stage(each) for each in evaluations)
    return Evaluation(manifest.name, task, len(texts.texts), stages, agreement(evaluations))


def _of_writing(
    path: Path, bundle: Bundle | None, texts: Texts, runtimes: Sequence[str], effort: Effort, on_advance: OnAdvance
) -> Evaluation:
    """A writer's checkpoint in torch, or each artifact of its bundle."""
    if bundle is None:
        graph = load_graph(path, "generate")
        student = graph.student
        kept = evaluated_texts(student, texts.texts, student.max_tokens)
        on_advance(Advance("reading", 1.0))
        metrics, _ = evaluate_in_torch(graph, kept, (), part_of(on_advance, "evaluating in torch"))
        count = student.parameter_count()
        name = "torch/" + graph.precision
        stage = Stage(name=name, kind="student", metrics=metrics, size_mib=count * 4 / MIB, parameters=count)
        return Evaluation(student.source, "generate", len(kept), (stage,))
    writing = bundle.manifest.writing
    context = bundle.manifest.tokenizer.max_tokens if writing is None else writing.context
    student = _tokenizing_student(bundle, "generate")
    kept = evaluated_texts(student, texts.texts, context)
    data = WritingData(kept, encode_writing(student, kept, context), [])
    on_advance(Advance("reading", 1.0))
    found = []
    for artifact in [each for name in runtimes or (None,) for each in bundle.artifacts(name)]:
        part = part_of(on_advance, f"evaluating on {artifact.runtime}")
        tokens = max(2, min(128, context // 2))
        found.append(
            evaluate_writer_artifact(
                bundle.folder,
                artifact.runtime,
                artifact.precision,
                data,
                tokens=tokens,
                effort=effort,
                on_progress=part,
            )
        )
    stages = tuple(artifact_stage(each) for each in found)
    return Evaluation(bundle.manifest.name, "generate", len(kept), stages, agreement(found))


def _of_summaries(
    path: str | Path,
    bundle: Bundle | None,
    texts: Texts,
    runtimes: Sequence[str],
    allow_pickle: bool,
    effort: Effort,
    on_advance: OnAdvance,
) -> Evaluation:
    """The baseline, and a summariser's checkpoint in torch or each artifact of its bundle."""
    if bundle is None:
        graph = load_graph(Path(path), "summarize") if Path(path).is_dir() and not allow_pickle else None
        if graph is None:
            graph = graph_of(read_student(path, "summarize", allow_pickle=allow_pickle))
        student = graph.student
        data = evaluate_summaries.summary_data(texts, min(student.max_tokens, MOST_SOURCE_TOKENS), SUMMARY_TOKENS)
        on_advance(Advance("reading", 1.0))
        part = part_of(on_advance, "evaluating in torch")
        metrics, _ = evaluate_summaries.evaluate_in_torch(graph, data, part)
        count = student.parameter_count()
        name = "torch/" + graph.precision
        stage = Stage(name=name, kind="student", metrics=metrics, size_mib=count * 4 / MIB, parameters=count)
        both = (evaluate_summaries.baseline_stage(data), stage)
        return Evaluation(student.source, "summarize", len(data.texts), both)
    source_tokens, summary_tokens = evaluate_summaries.contexts_of(bundle)
    data = evaluate_summaries.summary_data(texts, source_tokens, summary_tokens)
    on_advance(Advance("reading", 1.0))
    found = []
    for artifact in [each for name in runtimes or (None,) for each in bundle.artifacts(name)]:
        part = part_of(on_advance, f"evaluating on {artifact.runtime}")
        found.append(
            evaluate_summaries.evaluate_summarizer_artifact(
                bundle,
                artifact.runtime,
                artifact.precision,
                data,
                tokens=max(2, min(TIMED_TOKENS, source_tokens)),
                effort=effort,
                on_progress=part,
            )
        )
    stages = (evaluate_summaries.baseline_stage(data), *(artifact_stage(each) for each in found))
    return Evaluation(bundle.manifest.name, "summarize", len(data.texts), stages, agreement(found))


def _tokenizing_student(bundle: Bundle, task: Task) -> Student:
    """A student without weights, which cuts texts as the bundle's does."""
    manifest = bundle.manifest
    return Student(
        config={"model_type": manifest.family},
        state={},
        tokenizer=Tokenizer.from_file(str(bundle.folder / manifest.tokenizer.file.path)),
        tokenizer_config={},
        task=task,
        labels=manifest.labels,
        max_tokens=manifest.tokenizer.max_tokens,
        pad_id=manifest.tokenizer.pad_id,
        source=str(bundle.folder),
        sha256="",
    )
