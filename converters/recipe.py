"""A recipe: what is done to a student, from its named form on the ladder to numbers for one student.

The ladder runs from the gentlest recipe to the harshest; ``convert`` takes the first that meets the budget. Sizes
on the ladder are shares of the student's own, so that it serves students of any size. A recipe of one's own is a
TOML file with the fields of :class:`Recipe`.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import RecipeError
from .distillation import DistillationWeights
from .prune import Pruning
from .student import Student
from .training import TrainingSettings

Precision = Literal["fp32", "w8a8-static", "w8a8-dynamic"]


@dataclass(frozen=True)
class Shares:
    """What a pruned student keeps of each size, 0 to 1. ``vocabulary``: trim it to what domain text uses."""

    layers: float = 1.0
    neurons: float = 1.0
    width: float = 1.0
    vocabulary: bool = True


@dataclass(frozen=True)
class Recipe:
    """What is done to a student.

    Attributes:
        name: of the ladder, or of the file.
        precision: of the artifacts.
        keep: shares of the student's sizes; ``prune`` states sizes outright and goes first where both are given.
        relu: put ReLU in place of the feed-forward blocks' activation: on the integer grid it costs nothing.
        float_epochs: epochs of recovery in float before rounding starts (only where something was pruned or changed).
        training: of the recovery on the grid; its ``epochs`` 0 rounds without training.
        train_tokens: longer texts are cut at this many tokens in training (not in evaluation or on the device).
    """

    name: str
    precision: Precision = "w8a8-static"
    keep: Shares = Shares()
    prune: Pruning | None = None
    relu: bool = False
    float_epochs: int = 1
    training: TrainingSettings = field(default_factory=TrainingSettings)
    train_tokens: int = 128

    def pruning_of(self, student: Student) -> Pruning:
        """The sizes for one student; those that stay are None."""
        shape, keep = student.shape, self.keep
        heads = _share(shape.heads, keep.width)
        given = self.prune or Pruning()
        planned = Pruning(
            layers=given.layers or _share(shape.layers, keep.layers),
            neurons=given.neurons or _even_share(shape.neurons, keep.neurons),
            heads=given.heads or (None if given.hidden else heads),
            hidden=given.hidden or (None if given.heads else heads and heads * shape.head_width),
            positions=given.positions,
            vocabulary=given.vocabulary if given.vocabulary is not None else (0 if keep.vocabulary else None),
        )
        return replace(planned, positions=planned.positions or _short_positions(student))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance and reports."""
        return asdict(self)


DEFAULT_POSITIONS = 256


def _short_positions(student: Student) -> int | None:
    """Longest input kept: :data:`DEFAULT_POSITIONS` tokens; what a student reads beyond costs memory on the device."""
    return DEFAULT_POSITIONS if student.max_tokens > DEFAULT_POSITIONS else None


def _share(size: int, share: float) -> int | None:
    return None if share >= 1 else max(1, round(size * share))


def _even_share(size: int, share: float) -> int | None:
    """A share in multiples of 32, which int8 kernels take without padding."""
    if share >= 1:
        return None
    step = 32 if size >= 64 else 1
    return max(step, round(size * share / step) * step)


_TRAINING = TrainingSettings(
    epochs=2, learning_rate=3e-4, losses=DistillationWeights(soft=1.0, hidden=1.0, attention=0.3, labels=0.3)
)

LADDER: tuple[Recipe, ...] = (
    Recipe("gentle", relu=False, float_epochs=0, training=_TRAINING),
    Recipe("light", keep=Shares(neurons=0.5), relu=True, training=_TRAINING),
    Recipe("medium", keep=Shares(layers=0.75, neurons=0.5), relu=True, training=_TRAINING),
    Recipe("strong", keep=Shares(layers=0.5, neurons=0.5), relu=True, training=_TRAINING),
    Recipe("harsh", keep=Shares(layers=0.5, neurons=0.34, width=0.67), relu=True, training=_TRAINING),
)

ROUND_ONLY = Recipe("round", keep=Shares(vocabulary=False), float_epochs=0, training=replace(_TRAINING, epochs=0))
"""Rounds the student as it is: no pruning, no training. For comparison, and where there is no time."""

FLOAT = Recipe("float", "fp32", keep=Shares(vocabulary=False), float_epochs=0, training=replace(_TRAINING, epochs=0))
"""Exports the student as it is, in float32."""

NAMED: dict[str, Recipe] = {recipe.name: recipe for recipe in (*LADDER, ROUND_ONLY, FLOAT)}


def read_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe of the ladder by name, or one from a TOML file.

    Raises:
        RecipeError: neither a known name nor a file that holds a recipe; the message names the key at fault.
    """
    if str(name_or_path) in NAMED:
        return NAMED[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        raise RecipeError(f"there is no recipe {str(name_or_path)!r}; named ones are {', '.join(NAMED)}, or give a file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} is not TOML that can be read: {error}") from error
    content.setdefault("name", path.stem)
    unknown = set(content) - {"name", "precision", "keep", "prune", "relu", "float_epochs", "training", "train_tokens"}
    if unknown:
        raise RecipeError(f"{path}: unknown key {sorted(unknown)[0]!r}; a recipe has {', '.join(Recipe.__annotations__)}")
    try:
        recipe = msgspec.convert(content, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from error
    for share in ("layers", "neurons", "width"):
        if not 0 < getattr(recipe.keep, share) <= 1:
            raise RecipeError(f"{path}: keep.{share} is {getattr(recipe.keep, share)}; give a share over 0, at most 1")
    _check_training(path, recipe)
    return recipe


def _check_training(path: Path, recipe: Recipe) -> None:
    training = recipe.training
    for name in ("epochs", "patience"):
        if getattr(training, name) < 0:
            raise RecipeError(f"{path}: training.{name} is {getattr(training, name)}; give 0 or more")
    for name in ("batch_size", "accumulate", "evaluations"):
        if getattr(training, name) < 1:
            raise RecipeError(f"{path}: training.{name} is {getattr(training, name)}; give 1 or more")
    if recipe.float_epochs < 0 or recipe.train_tokens < 8:
        raise RecipeError(f"{path}: float_epochs must be 0 or more, and train_tokens 8 or more")
    if not 0 < training.learning_rate < 1 or not 0 <= training.warmup < 1 or training.losses.temperature <= 0:
        raise RecipeError(
            f"{path}: learning_rate must lie between 0 and 1, warmup from 0 to below 1, temperature above 0"
        )
