"""A recipe: what is done to a student, from its named form on the ladder to numbers for one student.

The ladder runs from the gentlest recipe to the harshest; ``convert`` takes the first that meets the budget. Sizes
on the ladder are shares of the student's own, so that it serves students of any size. A recipe of one's own is a
TOML file with the fields of :class:`Recipe`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from ..errors import RecipeError
from .anatomy import Task
from .distillation import DistillationWeights
from .prune import Pruning
from .student import Student
from .summary_data import SUMMARY_TOKENS
from .training import TrainingSettings

Precision = Literal["fp32", "w8a8-static", "w8a8-dynamic", "w4a8-dynamic"]


@dataclass(frozen=True)
class Shares:
    """What a pruned student keeps of each size, 0 to 1. ``vocabulary``: trim it to what domain text uses.

    Of an encoder-decoder, ``layers`` are the encoder's and ``decoder_layers`` the decoder's.
    """

    layers: float = 1.0
    decoder_layers: float = 1.0
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
        max_tokens: longest input that the student keeps; what it could read beyond costs memory on the device.
            0 keeps all; ``prune.positions`` goes first. Of a writer: the most tokens of prompt and text together.
            Of a summariser: the most tokens of a source.
        summary_tokens: of a summariser, the most tokens of a summary, those that start and end it included.
        prefix: of a summariser, what is put before every text; None takes what the checkpoint names.
        teacher_summaries: of a summariser, the share of training texts for which the teacher writes the summary that
            is learned (sequence-level distillation), 0 to 1.
        teacher_beams: beams of the teacher's search; 1 is greedy.
        int8_cache: of a writer, keep keys and values in int8 where the engine has it (ONNX Runtime): a quarter of the
            memory for each token of context, while prefill of long texts takes longer. Its scales come from the texts.
    """

    name: str
    precision: Precision = "w8a8-static"
    keep: Shares = Shares()
    prune: Pruning | None = None
    relu: bool = False
    float_epochs: int = 1
    training: TrainingSettings = field(default_factory=TrainingSettings)
    train_tokens: int = 128
    max_tokens: int = 256
    summary_tokens: int = SUMMARY_TOKENS
    prefix: str | None = None
    teacher_summaries: float = 0.0
    teacher_beams: int = 1
    int8_cache: bool = False

    def pruning_of(self, student: Student) -> Pruning:
        """The sizes for one student; those that stay are None."""
        shape, keep = student.shape, self.keep
        given = self.prune or Pruning()
        heads, hidden = given.heads, given.hidden
        if heads is None and hidden is None and shape.kv_heads:
            # A writer's key/value heads go with the heads that read them; its hidden width is apart from both.
            groups = _share(shape.kv_heads, keep.width)
            heads = None if groups is None else groups * (shape.heads // shape.kv_heads)
            hidden = _multiple(shape.hidden * keep.width, heads or shape.heads) if keep.width < 1 else None
        elif heads is None and hidden is None:
            heads = _share(shape.heads, keep.width)
            if student.anatomy.own_head_width:
                hidden = _multiple(shape.hidden * keep.width, 32) if keep.width < 1 else None
            else:
                hidden = None if heads is None else heads * shape.head_width
        # A writer's positions cost no memory: its context is a matter of the bundle.
        is_long = 0 < self.max_tokens < student.max_tokens and student.anatomy.kind == "encoder"
        own_neurons = shape.decoder_neurons not in (0, shape.neurons)
        decoder_layers = _share(shape.decoder_layers, keep.decoder_layers) if shape.decoder_layers else None
        decoder_neurons = _even_share(shape.decoder_neurons, keep.neurons) if own_neurons else None
        return Pruning(
            layers=given.layers or _share(shape.layers, keep.layers),
            decoder_layers=given.decoder_layers or decoder_layers,
            neurons=given.neurons or _even_share(shape.neurons, keep.neurons),
            decoder_neurons=given.decoder_neurons or decoder_neurons,
            heads=heads,
            hidden=hidden,
            positions=given.positions or (self.max_tokens if is_long else None),
            vocabulary=given.vocabulary if given.vocabulary is not None else (0 if keep.vocabulary else None),
            sentinels=given.sentinels,
        )

    def changes(self, student: Student) -> bool:
        """Whether it takes something out of a student, or alters it, that recovery must make good."""
        pruning, shape = self.pruning_of(student), student.shape
        sizes = (
            (pruning.layers, shape.layers),
            (pruning.decoder_layers, shape.decoder_layers),
            (pruning.neurons, shape.neurons),
            (pruning.decoder_neurons, shape.decoder_neurons),
            (pruning.heads, shape.heads),
            (pruning.hidden, shape.hidden),
        )
        becomes_relu = self.relu and shape.activation != "relu"
        return becomes_relu or any(size not in (None, present) for size, present in sizes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance and reports."""
        return asdict(self)


def _share(size: int, share: float) -> int | None:
    kept = max(1, round(size * share))
    return None if kept >= size else kept


def _multiple(size: float, step: int) -> int:
    """The nearest multiple of ``step``: transformers takes no hidden width that the heads do not divide."""
    return max(step, round(size / step) * step)


def _even_share(size: int, share: float) -> int | None:
    """A share in multiples of 32, which int8 kernels take without padding."""
    step = 32 if size >= 64 else 1
    kept = max(step, round(size * share / step) * step)
    return None if kept >= size else kept


_TRAINING = TrainingSettings(
    epochs=2, learning_rate=3e-4, losses=DistillationWeights(soft=1.0, hidden=1.0, attention=0.3, labels=0.3)
)

LADDER: tuple[Recipe, ...] = (
    Recipe("gentle", training=_TRAINING),
    Recipe("light", keep=Shares(neurons=0.5), relu=True, training=_TRAINING),
    Recipe("medium", keep=Shares(layers=0.75, neurons=0.5), relu=True, training=_TRAINING),
    Recipe("strong", keep=Shares(layers=0.5, neurons=0.5), relu=True, training=_TRAINING),
    Recipe("harsh", keep=Shares(layers=0.5, neurons=0.34, width=0.67), relu=True, training=_TRAINING),
)

_AS_IT_IS = Recipe(
    "as-it-is", keep=Shares(vocabulary=False), float_epochs=0, training=replace(_TRAINING, epochs=0), max_tokens=0
)

_WRITING = TrainingSettings(
    epochs=1,
    batch_size=4,
    accumulate=2,
    learning_rate=5e-5,
    losses=DistillationWeights(soft=1.0, hidden=0.0, attention=0.0, labels=0.3, temperature=1.0),
)
_WRITER = Recipe(
    "writer-int8", "w8a8-dynamic", keep=Shares(vocabulary=False), training=_WRITING, train_tokens=256, max_tokens=1024
)

# Weights have to move by half a step of the int4 grid before one of them changes: a lower rate hardly brings anything.
_INT4_WRITING = replace(
    _WRITING, learning_rate=3e-4, losses=replace(_WRITING.losses, hidden=0.5, labels=0.5)
)
_INT4_WRITER = replace(_WRITER, name="writer-int4", precision="w4a8-dynamic", training=_INT4_WRITING)

WRITER_LADDER: tuple[Recipe, ...] = (
    _WRITER,
    _INT4_WRITER,
    replace(_INT4_WRITER, name="writer-trimmed", keep=Shares()),
    replace(_INT4_WRITER, name="writer-strong", keep=Shares(layers=0.8, neurons=0.84)),
    replace(_INT4_WRITER, name="writer-harsh", keep=Shares(layers=0.6, neurons=0.75)),
)
"""The ladder of the task ``generate``."""

_SUMMARIZING = TrainingSettings(
    epochs=2,
    batch_size=16,
    learning_rate=2e-4,
    losses=DistillationWeights(soft=1.0, hidden=0.3, attention=0.0, labels=0.5, temperature=1.0),
)
_SUMMARIZER = Recipe(
    "summarizer-int8",
    "w8a8-dynamic",
    keep=Shares(vocabulary=False),
    training=_SUMMARIZING,
    train_tokens=512,
    max_tokens=512,
    teacher_summaries=0.5,
)
_SHALLOW = replace(_SUMMARIZER, precision="w4a8-dynamic", float_epochs=2)

SUMMARIZER_LADDER: tuple[Recipe, ...] = (
    _SUMMARIZER,
    replace(_SUMMARIZER, name="summarizer-int4", precision="w4a8-dynamic"),
    replace(_SHALLOW, name="summarizer-shallow", keep=Shares(decoder_layers=0.5, vocabulary=False)),
    replace(_SHALLOW, name="summarizer-trimmed", keep=Shares(decoder_layers=0.5)),
    replace(_SHALLOW, name="summarizer-strong", keep=Shares(layers=0.75, decoder_layers=0.5, neurons=0.67)),
    replace(_SHALLOW, name="summarizer-harsh", keep=Shares(layers=0.5, decoder_layers=0.34, neurons=0.5)),
)
"""The ladder of the task ``summarize``: the decoder, which runs once for every token, goes before the encoder."""


def ladder_of(task: Task) -> tuple[Recipe, ...]:
    """The ladder of a task, gentlest recipe first."""
    return {"generate": WRITER_LADDER, "summarize": SUMMARIZER_LADDER}.get(task, LADDER)


ROUND_ONLY = replace(_AS_IT_IS, name="round")
"""Rounds the student as it is: no pruning, no training. For comparison, and where there is no time."""

FLOAT = replace(_AS_IT_IS, name="float", precision="fp32")
"""Exports the student as it is, in float32."""

ROUND_WRITER = replace(
    _WRITER,
    name="writer-round",
    precision="w4a8-dynamic",
    float_epochs=0,
    training=replace(_WRITING, epochs=0),
)
"""Rounds a writer to int4 on a searched grid: no pruning, no training."""

WRITER_DOMAIN = replace(
    _WRITER,
    name="writer-domain",
    precision="fp32",
    float_epochs=0,
    training=replace(
        _WRITING,
        learning_rate=3e-5,
        losses=DistillationWeights(soft=0.0, hidden=0.0, attention=0.0, labels=1.0),
    ),
)
"""Teaches a writer its domain in float32, from texts alone: what is worth doing before it is pruned or quantised."""

ROUND_SUMMARIZER = replace(
    _SUMMARIZER,
    name="summarizer-round",
    float_epochs=0,
    training=replace(_SUMMARIZING, epochs=0),
    teacher_summaries=0.0,
)
"""Rounds a summariser to int8 as it is: no pruning, no training."""

SUMMARIZER_NPU = replace(_SUMMARIZER, name="summarizer-npu", precision="w8a8-static")
"""A summariser on static int8 grids, as compilers of NPUs want them; every runtime's int8 kernels take them too."""

ROUND_SUMMARIZER_NPU = replace(ROUND_SUMMARIZER, name="summarizer-npu-round", precision="w8a8-static")
"""Rounds a summariser to static int8 grids that are calibrated on the training texts: no pruning, no training."""

NAMED: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *LADDER, ROUND_ONLY, FLOAT,
        *WRITER_LADDER, ROUND_WRITER, WRITER_DOMAIN,
        *SUMMARIZER_LADDER, ROUND_SUMMARIZER, SUMMARIZER_NPU, ROUND_SUMMARIZER_NPU,
    )
}  # fmt: skip


def read_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe of the ladder by name, or one from a TOML file.

    Raises:
        RecipeError: neither a known name nor a file that holds a recipe; the message names the key at fault.
    """
    if str(name_or_path) in NAMED:
        return NAMED[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(str(name_or_path), NAMED, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise RecipeError(
            f"there is no recipe {str(name_or_path)!r}{hint}; named ones are {', '.join(NAMED)}, or give a TOML file"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} is not TOML that can be read: {error}") from error
    content.setdefault("name", path.stem)
    return recipe_from(content, str(path))


def recipe_from(content: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values, as :meth:`Recipe.as_dict` gives them; ``where`` they come from is for messages.

    Raises:
        RecipeError: an unknown key, a value of the wrong type or out of range.
    """
    _refuse_unknown(content, Recipe, where, "")
    try:
        recipe = msgspec.convert(content, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{where}: {str(error).replace('`$.', '`')}") from error
    _check_ranges(recipe, where)
    return recipe


def _refuse_unknown(content: Mapping[str, Any], kind: type, where: str, table: str) -> None:
    """See that a table has no key but the fields of its class, and so down the tables within it."""
    kinds = get_type_hints(kind)
    names = [each.name for each in fields(kind)]
    for key, value in content.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {table}{near[0]}?" if near else f"there are {', '.join(names)}"
            raise RecipeError(f"{where}: unknown key {table + key!r}; {hint}")
        inner = next((each for each in (kinds[key], *get_args(kinds[key])) if is_dataclass(each)), None)
        if isinstance(value, Mapping) and isinstance(inner, type):
            _refuse_unknown(value, inner, where, f"{table}{key}.")


def _check_ranges(recipe: Recipe, where: str) -> None:
    training, losses, keep = recipe.training, recipe.training.losses, recipe.keep
    sizes = {f"prune.{each.name}": getattr(recipe.prune, each.name) for each in fields(Pruning)} if recipe.prune else {}
    vocabulary = sizes.pop("prune.vocabulary", None)
    sizes.pop("prune.sentinels", None)
    weights = {name: getattr(losses, name) for name in ("soft", "hidden", "attention", "labels")}
    numbers: tuple[tuple[dict[str, Any], float, float, str], ...] = (
        ({"float_epochs": recipe.float_epochs, "max_tokens": recipe.max_tokens}, 0, 1e6, "0 or more"),
        ({"train_tokens": recipe.train_tokens}, 8, 1e6, "8 or more"),
        ({"summary_tokens": recipe.summary_tokens}, 4, 1e6, "4 or more"),
        ({"teacher_summaries": recipe.teacher_summaries}, 0, 1, "0 to 1"),
        ({"teacher_beams": recipe.teacher_beams}, 1, 64, "1 to 64"),
        ({"prune.vocabulary": vocabulary}, 0, 1e9, "0 or more"),
        (sizes, 1, 1e9, "1 or more"),
        (
            {f"keep.{name}": getattr(keep, name) for name in ("layers", "decoder_layers", "neurons", "width")},
            1e-6, 1, "over 0, at most 1",
        ),
        ({f"training.{name}": getattr(training, name) for name in ("epochs", "patience")}, 0, 1e6, "0 or more"),
        ({f"training.{name}": getattr(training, name) for name in ("weight_decay", "clip")}, 0, 1e6, "0 or more"),
        ({"training.checkpoint_seconds": training.checkpoint_seconds}, 0, 1e9, "0 or more"),
        ({"training.seed": training.seed}, 0, 2**32 - 1, "0 or more, under 2^32"),
        (
            {f"training.{name}": getattr(training, name) for name in ("batch_size", "accumulate", "evaluations")},
            1, 1e6, "1 or more",
        ),
        ({"training.learning_rate": training.learning_rate}, 1e-12, 1, "over 0, at most 1"),
        ({f"training.{name}": getattr(training, name) for name in ("warmup", "dropout")}, 0, 0.99, "0 to 0.99"),
        ({f"training.losses.{name}": value for name, value in weights.items()}, 0, 1e6, "0 or more"),
        ({"training.losses.temperature": losses.temperature}, 1e-3, 1e3, "0.001 to 1,000"),
    )  # fmt: skip
    for named, least, most, wanted in numbers:
        for name, value in named.items():
            if value is not None and not least <= value <= most:
                raise RecipeError(f"{where}: {name} is {value}; give {wanted}")
    if training.epochs and not any(weights.values()):
        raise RecipeError(f"{where}: every loss in training.losses counts 0, so there is nothing to learn from")
