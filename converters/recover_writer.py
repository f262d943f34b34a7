"""Recovery of a writer: pruned weights are trained back in float, then on the integer grid that will be exported.

The int4 grid is searched first on calibration text (:mod:`~edgescribe.converters.block_search`), so that training
starts from the best rounding that can be had without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .advance import Advance, OnAdvance, part_of, unwatched
from .block_search import search_blocks
from .conversion_data import Texts
from .language_metrics import foresee
from .recipe import Recipe
from .recover import Recovered
from .student import Student
from .torch_decoder import TorchDecoder, graph_of
from .torch_graph import TorchGraph
from .training import Progress, TrainingResult, train
from .writing_data import encode_writing, make_writing_examples

VALIDATED_TOKENS = 16_384
"""Tokens of the validation texts that choose the best state while training."""


def recover_writer(
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
    """Train a writer as the recipe says: first in float where it was ``changed``, then on the grid.

    With the precision ``fp32`` there is no grid, and all epochs are in float: so a student is taught its domain first.

    Arguments and errors are as of :func:`~edgescribe.converters.recover.recover`.
    """
    teacher_graph = graph_of(teacher).eval()
    on_advance(Advance("cutting texts into tokens", 0.0))
    examples = make_writing_examples(student, train_texts.texts, teacher, recipe.train_tokens)
    pieces = encode_writing(student, validation_texts.texts, recipe.train_tokens)
    validation = _first_tokens(pieces, VALIDATED_TOKENS)
    on_advance(Advance("cutting texts into tokens", 1.0))
    phases: list[tuple[str, TrainingResult]] = []
    settings = recipe.training

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

    on_grid = recipe.precision != "fp32"
    float_epochs = recipe.float_epochs if changed and settings.epochs > 0 else 0
    if not on_grid:
        float_epochs = settings.epochs
    if float_epochs > 0:
        graph = run("float", "recovering in float" if changed else "training in float", graph_of(student), float_epochs)
        student = student.with_state(graph.state())
    graph = graph_of(student, recipe.precision)
    if on_grid:
        if isinstance(graph, TorchDecoder):
            search_blocks(graph, examples, part_of(on_advance, "searching the grid"))
        if settings.epochs > 0:
            graph = run("grid", "training on the grid", graph, settings.epochs)
    return Recovered(graph.eval(), tuple(phases))


def scorer(pieces: Sequence[NDArray[np.int32]]) -> Callable[[TorchGraph], float]:
    """The score that training watches: the mean log-likelihood of a token, in nats (higher is better)."""

    def score(graph: TorchGraph) -> float:
        losses, _ = foresee(graph, pieces)
        return -float(np.concatenate(losses).mean())

    return score


def _first_tokens(pieces: Sequence[NDArray[np.int32]], count: int) -> list[NDArray[np.int32]]:
    kept: list[NDArray[np.int32]] = []
    for piece in pieces:
        if sum(map(len, kept)) >= count:
            break
        kept.append(piece)
    return kept
