"""Recovery: a pruned student is trained back, from its teacher and on the integer grid that will be exported."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import RecipeError
from .advance import Advance, OnAdvance, part_of, unwatched
from .conversion_data import Texts, examples_of
from .predict import predict, scorer
from .recipe import Recipe
from .student import Student
from .torch_graph import TorchGraph
from .training import Progress, TrainingResult, calibrate, train


@dataclass(frozen=True)
class Recovered:
    """A student trained on the grid, and how it went: ``phases`` has a name and a result for each phase trained."""

    graph: TorchGraph
    phases: tuple[tuple[str, TrainingResult], ...]


def with_relu(student: Student) -> Student:
    """The student with ReLU in its feed-forward blocks, by its configuration.

    On the integer grid ReLU is the lower end of the output's range and costs no operation of its own (Mirzadeh et
    al., "ReLU Strikes Back", 2023); recovery trains the student to it.

    Raises:
        RecipeError: a family whose configuration does not name the activation.
    """
    field = student.anatomy.config_fields.get("activation")
    if field is None:
        raise RecipeError(
            f"the family {student.anatomy.model_type} has no activation to choose in its configuration; "
            "set relu = false in the recipe"
        )
    config = copy.deepcopy(student.config)
    is_gated = str(config.get(field)).startswith("gated-")
    config[field] = "gated-relu" if is_gated else "relu"
    return replace(student, config=config)


def recover(
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
    """Train a student as the recipe says: first in float where it was ``changed``, then on the grid.

    Args:
        student: pruned, if the recipe prunes.
        teacher: what it learns from; mostly the unpruned student.
        changed: whether units went or the activation was swapped, so that float recovery comes first.
        checkpoints: folder for the state of training; with ``resume`` it is taken up from there.
        on_advance: told the phase and how far it is.

    Raises:
        InputError: no data, or checkpoints of another run.
        OutputError: the checkpoints cannot be written.
    """
    teacher_graph = TorchGraph(teacher).eval()
    max_tokens = recipe.train_tokens
    examples = examples_of(train_texts, student, teacher, max_tokens, part_of(on_advance, "cutting texts into tokens"))
    validation = examples_of(validation_texts, student, None, max_tokens)
    goals = None
    if student.task == "embed":
        goals = predict(teacher_graph, examples_of(validation_texts, teacher, None, max_tokens))
    score = scorer(validation, goals)
    phases: list[tuple[str, TrainingResult]] = []
    settings = recipe.training
    total = settings.epochs

    def run(name: str, words: str, graph: TorchGraph, epochs: int) -> TorchGraph:
        best: list[float] = []

        def tell(progress: Progress) -> None:
            if progress.score is not None:
                best.append(progress.score)
            score = f", validation {max(best):.4f}" if best else ""
            on_advance(Advance(words, progress.step / progress.steps, f"loss {progress.loss:.3f}{score}"))

        result = train(
            graph,
            examples,
            replace(settings, epochs=epochs),
            teacher=teacher_graph,
            evaluate=score,
            checkpoints=None if checkpoints is None else checkpoints / name,
            resume=resume,
            report=tell,
        )
        phases.append((name, result))
        return result.graph

    if changed and recipe.float_epochs > 0 and total > 0:
        graph = run("float", "recovering in float", TorchGraph(student), recipe.float_epochs)
        student = student.with_state(graph.state())
    graph = TorchGraph(student, recipe.precision)
    on_advance(Advance("calibrating", 0.0))
    calibrate(graph, examples)
    on_advance(Advance("calibrating", 1.0))
    if recipe.precision != "fp32" and total > 0:
        graph = run("grid", "training on the grid", graph, total)
    return Recovered(graph.eval(), tuple(phases))
