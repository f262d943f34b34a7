"""Pruning: units leave for good, and what remains is an ordinary, smaller checkpoint.

Sizes are uniform over the layers, so that the family's own configuration describes the result. In encoders, GPT-2,
BART and Marian the width of a head is ``hidden / heads`` by definition of the checkpoint format, so heads and hidden
width go together (docs/decisions/003). Others have it in their configuration, and the two are pruned apart; heads that
share a key/value head leave together with it.

Of an encoder-decoder the halves are pruned apart: layers by their own numbers, heads and neurons by their own scores,
and heads of attention to the source once more by theirs. T5's configuration has one number of heads and one of neurons
for both halves; its heads go with their columns of the relative positions, which all layers of a half share.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch

from ..errors import RecipeError
from .anatomy import Parameter, Role, Shape, UnitKind
from .importance import Importance, measure_importance
from .student import Student
from .training_data import Example
from .vocabulary import trim_vocabulary


@dataclass(frozen=True)
class Pruning:
    """What a student shall be pruned to; None leaves a size as it is.

    ``layers``, ``neurons`` (of each feed-forward block), ``heads`` (of each layer), ``hidden`` width
    (``heads x head width``, either follows from the other; where the configuration has the width of a head, each by
    itself, and ``heads`` a multiple of those that share a key/value head), ``positions`` (longest input in tokens) and
    ``vocabulary`` (most tokens to keep: those that domain text uses, most frequent first; 0 keeps all it uses).
    Of an encoder-decoder ``layers`` are the encoder's and ``decoder_layers`` the decoder's; ``neurons`` are both
    halves', unless ``decoder_neurons`` is given too, as it can be where the family counts them apart (BART, Marian).
    ``sentinels`` off: T5's ``<extra_id_…>``, which only its pretraining uses, leave with the vocabulary.
    """

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    neurons: int | None = None
    positions: int | None = None
    vocabulary: int | None = None
    decoder_layers: int | None = None
    decoder_neurons: int | None = None
    sentinels: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be pruned."""
        return self == Pruning()


def prune(
    student: Student,
    pruning: Pruning,
    examples: Sequence[Example],
    texts: Sequence[str],
    on_progress: Callable[[float], None] | None = None,
) -> Student:
    """The smaller student.

    Args:
        examples: made with this student's tokenizer, for the scores of units.
        texts: domain text, for the vocabulary.
        on_progress: told how far the scoring of units is, 0 to 1.

    Raises:
        RecipeError: a size that is larger than the student's, not positive, or that its family cannot have.
    """
    pruning = _checked(student, pruning)
    units = (pruning.hidden, pruning.heads, pruning.neurons, pruning.decoder_neurons)
    if any(size is not None for size in (pruning.layers, pruning.decoder_layers, *units)):
        importance = measure_importance(student, examples, on_progress=on_progress)
        student = prune_units(student, pruning, importance)
        if pruning.layers is not None:
            student = prune_layers(student, keep_layers(importance.layers, pruning.layers))
        if pruning.decoder_layers is not None:
            kept = keep_layers(importance.decoder_layers, pruning.decoder_layers)
            student = prune_layers(student, kept, in_decoder=True)
    if pruning.positions is not None:
        student = prune_positions(student, pruning.positions)
    if pruning.vocabulary is not None:
        student = trim_vocabulary(student, texts, pruning.vocabulary, pruning.sentinels)
    return student


def _checked(student: Student, pruning: Pruning) -> Pruning:
    shape, width = student.shape, student.shape.head_width
    pruning = _checked_halves(student, pruning)
    asked = {
        "layers": (pruning.layers, shape.layers),
        "hidden": (pruning.hidden, shape.hidden),
        "heads": (pruning.heads, shape.heads),
        "neurons": (pruning.neurons, shape.neurons),
        "positions": (pruning.positions, student.max_tokens),
        "decoder_layers": (pruning.decoder_layers, shape.decoder_layers),
        "decoder_neurons": (pruning.decoder_neurons, shape.decoder_neurons),
    }
    for name, (size, present) in asked.items():
        if size is not None and not 1 <= size <= present:
            raise RecipeError(f"the recipe asks for {size} {name}; this student has {present}: give 1 to {present}")
    if pruning.vocabulary is not None and pruning.vocabulary < 0:
        raise RecipeError(f"the recipe asks for a vocabulary of {pruning.vocabulary}; give 0 or more tokens")
    hidden, heads = pruning.hidden, pruning.heads
    if student.anatomy.own_head_width:
        _check_groups(student, hidden or shape.hidden, heads or shape.heads)
        return pruning
    if hidden is None and heads is not None:
        hidden = heads * width
    if heads is None and hidden is not None:
        heads = hidden // width
    if hidden is not None and heads is not None and hidden != heads * width:
        raise RecipeError(
            f"the recipe asks for a hidden width of {hidden} with {heads} heads; in the family "
            f"{student.anatomy.model_type} hidden = heads x head width, which is {width} here: "
            f"give {heads * width} with {heads} heads, or leave one of the two out"
        )
    if hidden == shape.hidden:
        hidden = heads = None
    if hidden is not None and shape.decoder_heads and hidden % shape.decoder_head_width:
        raise RecipeError(
            f"the recipe leaves a hidden width of {hidden}, and a head of this student's decoder is "
            f"{shape.decoder_head_width} wide: give a multiple of both that and {width}"
        )
    return replace(pruning, hidden=hidden, heads=heads)


def _checked_halves(student: Student, pruning: Pruning) -> Pruning:
    """The sizes with those of the decoder that follow from the encoder's."""
    shape, anatomy = student.shape, student.anatomy
    for name in ("decoder_layers", "decoder_neurons"):
        size = getattr(pruning, name)
        if size is None or name in anatomy.config_fields:
            continue
        if anatomy.kind != "encoder-decoder":
            raise RecipeError(f"the recipe asks for {size} {name}; this student is no encoder-decoder: leave that out")
        raise RecipeError(
            f"the recipe asks for {size} {name}; the family {anatomy.model_type} has as many in both halves: give "
            f"{name.removeprefix('decoder_')} alone"
        )
    if pruning.neurons is None or pruning.decoder_neurons is not None or "decoder_neurons" not in anatomy.config_fields:
        return pruning
    return replace(pruning, decoder_neurons=min(pruning.neurons, shape.decoder_neurons))


def _check_groups(student: Student, hidden: int, heads: int) -> None:
    shape = student.shape
    if heads % shape.group:
        raise RecipeError(
            f"the recipe asks for {heads} heads; {shape.group} of this student's heads share one key/value head and "
            f"leave together: give a multiple of {shape.group}"
        )
    if student.anatomy.heads_divide_hidden and hidden % heads:
        raise RecipeError(
            f"the recipe leaves a hidden width of {hidden} with {heads} heads; transformers takes a "
            f"{student.anatomy.model_type} only where the heads divide that width: give other numbers"
        )


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Numbers of the ``count`` best units, ascending; of equals the first stay."""
    order = torch.argsort(scores, descending=True, stable=True)
    return order[:count].sort().values


def keep_layers(turns: torch.Tensor, count: int) -> list[int]:
    """Numbers of the layers to keep: those that turn the hidden state most; the last one always stays.

    ``turns``: :attr:`Importance.layers`, or ``decoder_layers``.
    """
    scores = turns.clone()
    scores[-1] = math.inf
    return [int(layer) for layer in _best(scores, count)]


def prune_units(student: Student, pruning: Pruning, importance: Importance) -> Student:
    """Keep the best heads, neurons and hidden units; layers, positions and vocabulary stay as they are.

    Norms then run over fewer units: their gains and biases are corrected by the statistics of what they gave before,
    so that the mean and spread of the units that stay are as they were. Where embeddings are scaled by the hidden
    width, what layers add to them is scaled along.

    Raises:
        RecipeError: a hidden width that the family cannot have.
    """
    shape, anatomy, layout = student.shape, student.anatomy, student.layout
    follows = anatomy.embedding_follows_hidden(student.state)
    if pruning.hidden is not None:
        _check_width(student, pruning.hidden, follows)
    hidden = _best(importance.hidden, pruning.hidden) if pruning.hidden is not None else None
    units = _kept_units(student, pruning, importance)
    state = {}
    for name, tensor in student.state.items():
        parameter = layout[name]
        layer = anatomy.layer_number(name) or 0
        for axis, role in enumerate(parameter.axes):
            kept: torch.Tensor | None = None
            kind = anatomy.unit_kind(role)
            if role == "hidden" or (role == "embedding" and follows):
                kept = hidden
                if kept is not None and parameter.kind == "norm":
                    tensor = _corrected_norm(student, name, tensor, kept, importance)
            elif kind in units:
                kept = _places_of(units[kind][layer], role, shape)
            elif role == "sinusoids" and hidden is not None:
                tensor = _refitted(student, tensor, len(hidden))
            if kept is not None:
                tensor = tensor.index_select(axis, kept)
        if hidden is not None:
            tensor = tensor * math.sqrt(len(hidden) / shape.hidden) ** _width_power(student, name, parameter)
        state[name] = tensor.contiguous()
    config = copy.deepcopy(student.config)
    fields = anatomy.config_fields
    sizes: dict[str, int] = {"neurons": pruning.neurons or shape.neurons}
    if hidden is not None:
        sizes["hidden"] = len(hidden)
        if follows and "embedding" in fields:
            sizes["embedding"] = len(hidden)
    if pruning.heads is not None:
        sizes["heads"] = pruning.heads
    if "head_width" in fields:
        sizes["head_width"] = shape.head_width
    if "kv_heads" in fields:
        sizes["kv_heads"] = (pruning.heads or shape.heads) // shape.group
    for kind, numbers in units.items():
        if kind in ("decoder_heads", "decoder_neurons") and kind in fields:
            sizes[kind] = len(numbers[0])
    config |= {fields[name]: size for name, size in sizes.items()}
    return replace(student, config=config, state=state)


Kept: TypeAlias = dict[UnitKind | None, list[torch.Tensor]]
"""Numbers of the units that stay in each layer, ascending, by kind; no kind that stays whole, and never None."""


def _kept_units(student: Student, pruning: Pruning, importance: Importance) -> Kept:
    """For each kind of units that is pruned, which ones stay in each layer."""
    shape, anatomy = student.shape, student.anatomy
    counts: dict[UnitKind, int | None] = {"neurons": pruning.neurons, "decoder_neurons": pruning.decoder_neurons}
    if "decoder_neurons" not in anatomy.config_fields:
        counts["decoder_neurons"] = pruning.neurons
    if pruning.heads is not None:
        others = pruning.heads
        if pruning.hidden is not None and not anatomy.own_head_width:
            others = pruning.hidden // shape.decoder_head_width
        counts |= {"heads": pruning.heads // shape.group, "decoder_heads": others, "cross_heads": others}
    kept: Kept = {}
    for kind, scores in importance.units.items():
        count = counts.get(kind)
        if count is None:
            continue
        if kind in anatomy.tied_kinds:
            kept[kind] = [_best(torch.stack(scores).sum(0), count)] * len(scores)
        else:
            kept[kind] = [_best(each, count) for each in scores]
    return kept


def _places_of(units: torch.Tensor, role: Role, shape: Shape) -> torch.Tensor:
    """Places along an axis of what belongs to units of its kind."""
    if role in ("head", "decoder_head", "neurons", "decoder_neurons"):
        return units
    if role in ("decoder_heads", "cross_heads"):
        return _runs(units, shape.decoder_head_width)
    return _units_of(units, role, shape)


def _runs(units: torch.Tensor, width: int) -> torch.Tensor:
    """Places of units that are ``width`` wide each."""
    return (units[:, None] * width + torch.arange(width)).reshape(-1)


def _width_power(student: Student, name: str, parameter: Parameter) -> int:
    """By which power of the root of the hidden width a tensor grows with it."""
    anatomy = student.anatomy
    if anatomy.scales_embeddings:
        return int(_adds_to_hidden(parameter))
    return anatomy.width_power(name, student.shape) if anatomy.width_power is not None else 0


def _units_of(groups: torch.Tensor, role: str, shape: Shape) -> torch.Tensor:
    """Places of what belongs to the groups along an axis of that role; a group is a head where none share one."""
    width, group = shape.head_width, shape.group
    own, readers = _runs(groups, width), _runs(groups, group * width)
    if role == "joined":
        keys = shape.heads * width
        return torch.cat([readers, keys + own, keys + shape.kv_heads * width + own])
    return own if role == "kv_heads" else readers


def _adds_to_hidden(parameter: Parameter) -> bool:
    """Whether a tensor is of a linear layer whose result is added to the hidden state."""
    if parameter.kind == "matrix":
        return parameter.axes[1 if parameter.matrix == "in_out" else 0] == "hidden"
    return parameter.kind == "bias" and parameter.axes == ("hidden",)


def _check_width(student: Student, hidden: int, embedding_follows: bool) -> None:
    shape, anatomy = student.shape, student.anatomy
    if anatomy.sinusoids is not None and hidden % 2:
        raise RecipeError(
            f"the recipe asks for a hidden width of {hidden}; the family {anatomy.model_type} needs an even one: "
            f"give an even number of heads (each is {shape.head_width} wide)"
        )
    optional = any(each.name == anatomy.projection and each.when is not None for each in anatomy.parameters)
    if optional and not embedding_follows and hidden == shape.embedding:
        raise RecipeError(
            f"the recipe asks for a hidden width of {hidden}, which is that of the embeddings: in the family "
            f"{anatomy.model_type} there is then no projection between the two. Give a head more or less"
        )


def _corrected_norm(
    student: Student, name: str, tensor: torch.Tensor, kept: torch.Tensor, importance: Importance
) -> torch.Tensor:
    norm, statistics = name.rsplit(".", 1)[0], importance.norms
    if norm not in statistics.counts:
        return tensor
    count = statistics.counts[norm]
    shift = float(statistics.sums[norm][kept].mean()) / count if statistics.centred[norm] else 0.0
    spread = math.sqrt(max(float(statistics.squares[norm][kept].mean()) / count - shift * shift, 1e-6))
    if name.endswith(".weight"):
        return (tensor + statistics.offsets[norm]) * spread - statistics.offsets[norm]
    return tensor + student.state[f"{norm}.weight"] * shift


def _refitted(student: Student, tensor: torch.Tensor, width: int) -> torch.Tensor:
    """A matrix over sinusoids ``[W, H, D]`` for sinusoids of another width, whose frequencies are others.

    It is the one that gives, with the least squared error over all offsets that an input can have, the same keys.
    """
    sinusoids = student.anatomy.sinusoids
    if sinusoids is None:
        return tensor
    offsets = np.arange(-student.max_tokens, student.max_tokens + 1)
    before, after = (torch.from_numpy(sinusoids(size)(offsets)).double() for size in (tensor.shape[0], width))
    keys = before @ tensor.reshape(tensor.shape[0], -1).double()
    fitted: torch.Tensor = torch.linalg.lstsq(after, keys, driver="gelsd").solution
    return fitted.to(tensor.dtype).reshape(width, *tensor.shape[1:])


def prune_layers(student: Student, kept: Sequence[int], in_decoder: bool = False) -> Student:
    """Keep the layers of the given numbers, ascending; ``in_decoder``: of an encoder-decoder's decoder."""
    anatomy = student.anatomy
    config = copy.deepcopy(student.config)
    config[anatomy.config_fields["decoder_layers" if in_decoder else "layers"]] = len(kept)
    if isinstance(config.get("layer_types"), list) and len(config["layer_types"]) == student.shape.layers:
        config["layer_types"] = [config["layer_types"][layer] for layer in kept]
    if anatomy.shared_layers:
        return replace(student, config=config)
    prefix = (anatomy.decoder_prefix if in_decoder else None) or anatomy.layer_prefix
    state = {}
    for name, tensor in student.state.items():
        number = anatomy.layer_number(name)
        if number is None or anatomy.is_in_decoder(name) != in_decoder:
            state[name] = tensor
        elif number in kept:
            before, now = (prefix.format(layer=each, decoder_layer=each) for each in (number, list(kept).index(number)))
            state[name.replace(before, now, 1)] = tensor
    return replace(student, config=config, state=state)


def prune_positions(student: Student, tokens: int) -> Student:
    """Shorten the table of positions to inputs of ``tokens`` tokens (where there is no such table: the limit alone)."""
    anatomy, config = student.anatomy, copy.deepcopy(student.config)
    rows = tokens + student.shape.position_offset
    state = {}
    for name, tensor in student.state.items():
        axes = student.layout[name].axes
        state[name] = tensor[:rows].contiguous() if axes[0] == "positions" else tensor
    if "positions" in anatomy.config_fields:
        config[anatomy.config_fields["positions"]] = rows - anatomy.rows_before
    tokenizer_config = dict(student.tokenizer_config)
    tokenizer_config["model_max_length"] = tokens
    return replace(student, config=config, state=state, max_tokens=tokens, tokenizer_config=tokenizer_config)
