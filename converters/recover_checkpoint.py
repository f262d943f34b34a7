"""The stage ``recover`` alone: a checkpoint trained from its teacher on the grid that will be exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .advance import Advance, OnAdvance, unwatched
from .anatomy import Shape, Task
from .checkpoint import check_checkpoint_output, save_graph
from .conversion_report import TrainingCurve, training_curve
from .conversion_request import read_teacher, read_training_texts, with_prefix_given
from .read import read_student
from .recipe import Recipe, ladder_of, read_recipe
from .recover import with_relu
from .recoveries import recovery_of
from .stages import check_stages, open_stages
from .summary_data import with_prefix


@dataclass(frozen=True)
class RecoveredCheckpoint:
    """What recovery gave: a checkpoint folder with its grids, their precision, and how each phase went."""

    folder: Path
    precision: str
    training: tuple[TrainingCurve, ...]


def recover_checkpoint(
    student: str | Path,
    *,
    teacher: str | Path,
    task: Task,
    train: str | Path,
    out: str | Path,
    validation: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    prefix: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    resume: bool = False,
    on_advance: OnAdvance = unwatched,
    warn: Callable[[str], None] | None = None,
) -> RecoveredCheckpoint:
    """Train a student, mostly a pruned one, as a recipe says; its sizes stay as they are.

    Float recovery comes first where the student's layers, heads, neurons or width differ from the teacher's, or the
    recipe puts ReLU in place of the activation.

    Args:
        student: checkpoint folder or hub id; ``teacher`` likewise, of the same classes.
        train: data file; ``validation`` chooses the best state, a tenth of the training rows unless given.
        out: folder of the new checkpoint: plain transformers loads its weights, ``edgescribe export`` its grids too.
            Until it is done the state lies in ``<out>.work``.
        recipe: its training, precision and activation are taken; the gentlest of the task's ladder unless given.
        prefix: of a summariser, what is put before every text; None takes the recipe's, or what the checkpoint names.
        force: replace a checkpoint at ``out``, and throw interrupted work on it away.
        resume: take up the training that was interrupted.

    Raises:
        InputError: a student, data or recipe that cannot be used, or an ``out`` that cannot be written.
        KeyboardInterrupt: interrupted; the state is kept for ``resume``.
    """
    target = Path(out)
    check_checkpoint_output(target, force)
    check_stages(target, resume, force)
    recipe = ladder_of(task)[0] if recipe is None else recipe
    chosen = with_prefix_given(recipe if isinstance(recipe, Recipe) else read_recipe(recipe), task, prefix)
    on_advance(Advance("reading", 0.0))
    read = read_student(student, task, allow_pickle=allow_pickle)
    guide = read_teacher(teacher, read, allow_pickle)
    if task == "summarize":
        read, guide = with_prefix(read, chosen.prefix), with_prefix(guide, chosen.prefix)
    train_texts, validation_texts = read_training_texts(read, train, validation, warn)
    on_advance(Advance("reading", 1.0))
    fingerprint = {
        "student": read.sha256,
        "teacher": guide.sha256,
        "recipe": chosen.as_dict(),
        "train": train_texts.sha256,
        "validation": validation_texts.sha256,
        "task": task,
    }
    stages = open_stages(target, fingerprint, resume=resume, force=force)
    changed = _sizes(read.shape) != _sizes(guide.shape) or (chosen.relu and read.shape.activation != "relu")
    recovered = recovery_of(task)(
        with_relu(read) if chosen.relu else read,
        guide,
        chosen,
        train_texts,
        validation_texts,
        changed=changed,
        checkpoints=stages.training,
        resume=resume,
        on_advance=on_advance,
    )
    record = {"recipe": chosen.as_dict(), "source": read.source, "source_sha256": read.sha256}
    save_graph(recovered.graph, target, record)
    stages.remove()
    curves = tuple(training_curve(name, result) for name, result in recovered.phases)
    return RecoveredCheckpoint(target, recovered.graph.precision, curves)


def _sizes(shape: Shape) -> tuple[object, ...]:
    encoder = shape.layers, shape.hidden, shape.heads, shape.neurons, shape.activation
    return *encoder, shape.decoder_layers, shape.decoder_heads, shape.decoder_neurons
