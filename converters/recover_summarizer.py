"""Recovery of a summariser: pruned weights are trained back in float, then on the integer grid that will be exported.

It learns from its teacher token by token and, for a share of the texts, the teacher's own summaries
(:mod:`~edgescribe.converters.teacher_summaries`). The int4 grid is searched on calibration texts first
(:mod:`~edgescribe.converters.block_search`); static activation grids are started from them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .advance import Advance, OnAdvance, part_of, unwatched
from .block_search import search_blocks
from .conversion_data import Texts, examples_of
from .recipe import Recipe
from .recover import Recovered
from .student import Student
from .summary_metrics import scorer
from .teacher_summaries import with_teacher_summaries
from .torch_decoder import TorchDecoder, graph_of
from .torch_graph import TorchGraph
from .training import Progress, TrainingResult, calibrate, train

VALIDATED_TEXTS = 512
"""Validation texts that choose the best state while training."""

KEPT_SUMMARIES = "teacher_summaries.jsonl"
"""The file beside the checkpoints that holds what the teacher wrote."""


def recover_summarizer(
    student: Student,
    teacher: Student,
    recipe: Recipe,
    train_texts: Texts,
    validation_texts: Texts,
    *,
    changed: bool,
    checkpoints: Path | None = None,
    resume: bool = False,
    on_advance: OnAdvance = unwatched,
) -> Recovered:
    """Train a summariser as the recipe says: first in float where it was ``changed``, then on the grid.

    Arguments and errors are as of :func:`~edgescribe.converters.recover.recover`.
    """
    settings = recipe.training
    summary_tokens = recipe.summary_tokens
    if settings.epochs > 0 and recipe.teacher_summaries > 0:
        train_texts = with_teacher_summaries(
            train_texts,
            teacher,
            share=recipe.teacher_summaries,
            beams=recipe.teacher_beams,
            max_tokens=recipe.train_tokens,
            summary_tokens=summary_tokens,
            seed=settings.seed,
            path=None if checkpoints is None else checkpoints / KEPT_SUMMARIES,
            on_progress=part_of(on_advance, "the teacher writes summaries"),
        )
    cutting = part_of(on_advance, "cutting texts into tokens")
    examples = examples_of(train_texts, student, teacher, recipe.train_tokens, cutting, summary_tokens)
    few = validation_texts.part(range(min(len(validation_texts.texts), VALIDATED_TEXTS)))
    validation = examples_of(few, student, None, recipe.train_tokens, None, summary_tokens)
    teacher_graph = graph_of(teacher).eval()
    phases: list[tuple[str, TrainingResult]] = []

    def run(name: str, words: str, graph: TorchGraph, epochs: int) -> TorchGraph:
        best: list[float] = []

        def tell(progress: Progress) -> None:
            if progress.score is not None:
                best.append(progress.score)
            score = f", validation {-max(best):.4f} nats a token" if best else ""
            on_advance(Advance(words, progress.step / progress.steps, f"loss {progress.loss:.3f}{score}"))

        result = train(
            graph,
            examples,
            replace(settings, epochs=epochs),
            teacher=teacher_graph,
            evaluate=scorer(validation),
            checkpoints=None if checkpoints is None else checkpoints / name,
            resume=resume,
            report=tell,
        )
        phases.append((name, result))
        return result.graph

    if changed and recipe.float_epochs > 0 and settings.epochs > 0:
        graph = run("float", "recovering in float", graph_of(student), recipe.float_epochs)
        student = student.with_state(graph.state())
    graph = graph_of(student, recipe.precision)
    if recipe.precision != "fp32":
        if isinstance(graph, TorchDecoder):
            search_blocks(graph, examples, part_of(on_advance, "searching the grid"))
        calibrate(graph, examples)
        if settings.epochs > 0:
            graph = run("grid", "training on the grid", graph, settings.epochs)
    return Recovered(graph.eval(), tuple(phases))
