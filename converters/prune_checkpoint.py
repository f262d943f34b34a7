"""The stage ``prune`` alone: a checkpoint with units and tokens taken out, written as a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import UsageError
from .advance import Advance, OnAdvance, part_of, unwatched
from .anatomy import Shape, Task
from .checkpoint import check_checkpoint_output, save_student
from .conversion_data import check_labels, examples_of, read_texts
from .prune import Pruning, prune
from .read import read_student
from .recipe import Recipe, read_recipe
from .recover import with_relu

SCORED_TEXTS = 1024
"""Training rows that units are scored on."""


@dataclass(frozen=True)
class PrunedCheckpoint:
    """What pruning gave: the folder, the sizes before and after, and the number of weights before and after."""

    folder: Path
    before: Shape
    after: Shape
    parameters_before: int
    parameters_after: int


def prune_checkpoint(
    student: str | Path,
    *,
    task: Task,
    train: str | Path,
    out: str | Path,
    recipe: str | Path | Recipe | None = None,
    pruning: Pruning | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    on_advance: OnAdvance = unwatched,
    warn: Callable[[str], None] | None = None,
) -> PrunedCheckpoint:
    """Prune a checkpoint, untrained: :func:`~edgescribe.converters.recover_checkpoint.recover_checkpoint` follows.

    Args:
        student: checkpoint folder or hub id.
        train: data file; units are scored on its first rows, and the vocabulary is trimmed to all of it.
        out: folder of the new checkpoint, which plain transformers loads.
        recipe: take the sizes (and ReLU) that a recipe has for this student ...
        pruning: ... or these sizes.
        force: replace a checkpoint at ``out``.

    Raises:
        UsageError: neither recipe nor pruning, or both, or nothing to prune.
        InputError: a student, data or recipe that cannot be used, or an ``out`` that cannot be written.
    """
    if (recipe is None) == (pruning is None):
        raise UsageError("say what to prune: either a recipe, or sizes")
    target = Path(out)
    check_checkpoint_output(target, force)
    chosen = recipe if recipe is None or isinstance(recipe, Recipe) else read_recipe(recipe)
    on_advance(Advance("reading", 0.0))
    read = read_student(student, task, allow_pickle=allow_pickle)
    sizes = pruning if chosen is None else chosen.pruning_of(read)
    relu = chosen is not None and chosen.relu
    if sizes is None or (sizes.is_empty and not relu):
        raise UsageError("there is nothing to prune; name at least one size")
    texts = read_texts(Path(train), task, warn)
    check_labels(texts, read.labels, Path(train))
    limit = chosen.train_tokens if chosen is not None else None
    few = texts.part(range(min(len(texts.texts), SCORED_TEXTS)))
    on_advance(Advance("reading", 1.0))
    on_advance(Advance("pruning", 0.0))
    pruned = prune(read, sizes, examples_of(few, read, None, limit), texts.words(read), part_of(on_advance, "pruning"))
    if relu:
        pruned = with_relu(pruned)
    save_student(pruned, target, {"source": read.source, "source_sha256": read.sha256, "pruned": asdict(sizes)})
    on_advance(Advance("pruning", 1.0))
    return PrunedCheckpoint(target, read.shape, pruned.shape, read.parameter_count(), pruned.parameter_count())
