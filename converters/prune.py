"""Pruning: units leave for good, and what remains is an ordinary, smaller checkpoint.

Sizes are uniform over the layers, so that the family's own configuration describes the result. In encoders and GPT-2
the width of a head is ``hidden / heads`` by definition of the checkpoint format, so heads and hidden width go together
(docs/decisions/003). Other writers have it in their configuration, and the two are pruned apart; heads that share a
key/value head leave together with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import RecipeError
from .anatomy import Parameter, Shape
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
    """

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    neurons: int | None = None
    positions: int | None = None
    vocabulary: int | None = None

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
    units = (pruning.layers, pruning.hidden, pruning.heads, pruning.neurons)
    if any(size is not None for size in units):
        importance = measure_importance(student, examples, on_progress=on_progress)
        student = prune_units(student, pruning, importance)
        if pruning.layers is not None:
            student = prune_layers(student, keep_layers(importance, pruning.layers))
    if pruning.positions is not None:
        student = prune_positions(student, pruning.positions)
    if pruning.vocabulary is not None:
        student = trim_vocabulary(student, texts, pruning.vocabulary)
    return student


def _checked(student: Student, pruning: Pruning) -> Pruning:
    shape, width = student.shape, student.shape.head_width
    asked = {
        "layers": (pruning.layers, shape.layers),
        "hidden": (pruning.hidden, shape.hidden),
        "heads": (pruning.heads, shape.heads),
        "neurons": (pruning.neurons, shape.neurons),
        "positions": (pruning.positions, student.max_tokens),
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
    return replace(pruning, hidden=hidden, heads=heads)


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


def keep_layers(importance: Importance, count: int) -> list[int]:
    """Numbers of the layers to keep: those that turn the hidden state most; the last one always stays."""
    scores = importance.layers.clone()
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
    heads = _kept_heads(student, pruning, importance)
    neurons = [_best(scores, pruning.neurons) if pruning.neurons else None for scores in importance.neurons]
    state = {}
    for name, tensor in student.state.items():
        parameter = layout[name]
        layer = anatomy.layer_number(name) or 0
        for axis, role in enumerate(parameter.axes):
            kept: torch.Tensor | None = None
            if role == "hidden" or (role == "embedding" and follows):
                kept = hidden
                if kept is not None and parameter.kind == "norm":
                    tensor = _corrected_norm(student, name, tensor, kept, importance)
            elif role == "neurons":
                kept = neurons[layer]
            elif role == "head":
                kept = heads[layer]
            elif role in ("heads", "kv_heads", "joined") and (numbers := heads[layer]) is not None:
                kept = _units_of(numbers, role, shape)
            elif role == "sinusoids" and hidden is not None:
                tensor = _refitted(student, tensor, len(hidden))
            if kept is not None:
                tensor = tensor.index_select(axis, kept)
        if hidden is not None and anatomy.scales_embeddings and _adds_to_hidden(parameter):
            tensor = tensor * math.sqrt(len(hidden) / shape.hidden)
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
    config |= {fields[name]: size for name, size in sizes.items()}
    return replace(student, config=config, state=state)


def _units_of(groups: torch.Tensor, role: str, shape: Shape) -> torch.Tensor:
    """Places of what belongs to the groups along an axis of that role; a group is a head where none share one."""
    width, group = shape.head_width, shape.group
    own = (groups[:, None] * width + torch.arange(width)).reshape(-1)
    readers = (groups[:, None] * group * width + torch.arange(group * width)).reshape(-1)
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


def _kept_heads(student: Student, pruning: Pruning, importance: Importance) -> list[torch.Tensor | None]:
    if pruning.heads is None:
        return [None] * len(importance.heads)
    count = pruning.heads // student.shape.group
    if student.anatomy.heads_are_tied:
        together = torch.stack(importance.heads).sum(0)
        return [_best(together, count)] * len(importance.heads)
    return [_best(scores, count) for scores in importance.heads]


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


def prune_layers(student: Student, kept: Sequence[int]) -> Student:
    """Keep the layers of the given numbers, ascending."""
    anatomy = student.anatomy
    config = copy.deepcopy(student.config)
    config[anatomy.config_fields["layers"]] = len(kept)
    if isinstance(config.get("layer_types"), list) and len(config["layer_types"]) == student.shape.layers:
        config["layer_types"] = [config["layer_types"][layer] for layer in kept]
    if anatomy.shared_layers:
        return replace(student, config=config)
    state = {}
    for name, tensor in student.state.items():
        number = anatomy.layer_number(name)
        if number is None:
            state[name] = tensor
        elif number in kept:
            now = anatomy.layer_prefix.format(layer=list(kept).index(number))
            state[name.replace(anatomy.layer_prefix.format(layer=number), now, 1)] = tensor
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
        config[anatomy.config_fields["positions"]] = rows
    tokenizer_config = dict(student.tokenizer_config)
    tokenizer_config["model_max_length"] = tokens
    return replace(student, config=config, state=state, max_tokens=tokens, tokenizer_config=tokenizer_config)
