"""Reading a student: a checkpoint folder, or a hub id where a hub can be reached, into a :class:`Student`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from ..errors import StudentError
from .anatomy import Anatomy, Parameter, Shape, Task, anatomy_of
from .generation_defaults import check_generation, generation_of, read_generation
from .gguf_files import SUFFIX, gguf_in, read_gguf
from .json_files import read_object
from .stored_student import StoredStudent
from .student import Student
from .tokenizer_files import CHAT_TEMPLATE, read_chat_template, read_tokenizer, special_token
from .weight_files import PICKLED, WEIGHTS, read_weights

HUB_SECONDS = 10.0
"""How long a hub may take to answer at all; after that, what was downloaded earlier serves."""

UNLABELLED_TASKS = ("embed", "generate", "summarize")
"""Tasks whose students know no classes."""

WRITING_TASKS = ("generate", "summarize")
"""Tasks whose students write text."""

LARGEST = 1 << 24
"""Of any size in a configuration; what is over it is a damaged file, not a student."""


def read_student(
    source: str | Path, task: Task, *, labels: Sequence[str] | None = None, allow_pickle: bool = False, seed: int = 0
) -> Student:
    """Read a student for a task.

    Args:
        source: a checkpoint folder, a GGUF file or a folder that holds one, or a hub id (``owner/name``) where no
            such folder exists.
        labels: class or tag names. The checkpoint's own in another order: the head is put in that order; others than
            the checkpoint's: the head's last layer is made anew.
        allow_pickle: also take ``pytorch_model.bin``; off, since unpickling runs code from the file.
        seed: of the random weights of a head that the checkpoint does not have.

    Raises:
        StudentError: not a checkpoint, a family that is not described, missing or misshapen weights, no tokenizer.
    """
    folder = _folder(source)
    try:
        return _read(folder, str(source), task, labels, allow_pickle, seed)
    except OSError as error:
        raise StudentError(f"{folder} cannot be read: {error.strerror or error}") from error


def _read(
    folder: Path, source: str, task: Task, labels: Sequence[str] | None, allow_pickle: bool, seed: int
) -> Student:
    packed = gguf_in(folder)
    path = packed or folder / "config.json"
    stored = read_gguf(packed) if packed is not None else None
    config = stored.config if stored is not None else _config(path)
    anatomy = anatomy_of(config["model_type"])
    if task not in anatomy.architectures:
        raise StudentError(f"{source}: the family {anatomy.model_type} does not serve the task {task!r}")
    present: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    if task in UNLABELLED_TASKS:
        config.pop("id2label", None)
        config.pop("label2id", None)
    else:
        present = _known_labels(path, config)
        names = tuple(present if labels is None else labels)
        _check_labels(path, config, names)
        _set_labels(config, present)
    if stored is None:
        stored = _stored(folder, config, allow_pickle)
    if anatomy.settle is not None:
        config, settled = anatomy.settle(config, dict(stored.state))
        stored = replace(stored, config=config, state=settled)
    shape = _shape(path, anatomy, config)
    given = _prefixed(anatomy, task, stored.state)
    if task not in UNLABELLED_TASKS:
        given = _in_order(anatomy, task, given, present, names)
        _set_labels(config, names)
        shape = _shape(path, anatomy, config)
    kept = _fit(folder, anatomy, task, shape, given, float(_number(config, "initializer_range", 0.02)), seed)
    _check_tokenizer(folder, stored.tokenizer, shape)
    if task in WRITING_TASKS:
        check_generation(path, config, shape.vocabulary)
        check_generation(packed or folder / "generation_config.json", stored.generation, shape.vocabulary)
    generation = stored.generation if task in WRITING_TASKS else {}
    if task == "summarize":
        generation = generation_of(generation, config)
    student = Student(
        config=config,
        state=kept,
        tokenizer=stored.tokenizer,
        tokenizer_config=stored.tokenizer_config,
        task=task,
        labels=names,
        max_tokens=_max_tokens(anatomy, shape, stored.tokenizer_config),
        pad_id=0,
        source=source,
        sha256=stored.sha256,
        generation=generation,
        chat_template=stored.chat_template if task == "generate" else None,
    )
    return replace(student, pad_id=_pad_id(path, student))


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StudentError(f"{path.parent} is not a checkpoint: it has no config.json")
    config = read_object(path)
    if not isinstance(config.get("model_type"), str):
        raise StudentError(f"{path} does not name a model_type, so the student's family is unknown")
    return config


def _stored(folder: Path, config: dict[str, Any], allow_pickle: bool) -> StoredStudent:
    """What the other files of a checkpoint folder hold."""
    state, sha256 = read_weights(folder, allow_pickle)
    tokenizer, tokenizer_config = read_tokenizer(folder)
    template = read_chat_template(folder, tokenizer_config)
    tokenizer_config.pop("chat_template", None)
    return StoredStudent(config, state, sha256, tokenizer, tokenizer_config, read_generation(folder), template)


# Where it comes from
def _folder(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir() or (folder.is_file() and folder.suffix == SUFFIX):
        return folder
    if folder.exists():
        raise StudentError(
            f"{source} is a file; give the checkpoint's folder (with config.json and {WEIGHTS}), or a {SUFFIX} file"
        )
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise StudentError(f"there is no folder {source}; give a checkpoint folder, or a hub id such as owner/name")
    return _download(text)


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", CHAT_TEMPLATE, PICKLED]
    try:
        # Downloading has no limit of its own on a hub that says nothing, so it is asked beforehand.
        HfApi().model_info(name, timeout=HUB_SECONDS)
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        with contextlib.suppress(Exception):
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix("Got: ")
        raise StudentError(
            f"there is no folder {name}, and the hub did not give {name!r}: {reason}. "
            "Check the name, or download the checkpoint and give its folder"
        ) from error


# Configuration
def _number(content: Mapping[str, Any], field: str, default: float) -> float:
    value = content.get(field, default)
    good = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return value if good else default


def _max_tokens(anatomy: Anatomy, shape: Shape, tokenizer_config: Mapping[str, Any]) -> int:
    """The longest input: as many tokens as have positions, fewer where the tokenizer's configuration says so."""
    longest = shape.positions - shape.position_offset
    limit = _number(tokenizer_config, "model_max_length", LARGEST)
    if not 1 < limit < LARGEST:
        limit = anatomy.default_tokens or longest
    return int(min(longest, limit))


def _known_labels(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The checkpoint's labels in the order of its logits; transformers' own names where it has none."""
    known = config.get("id2label")
    if not known:
        count = _number(config, "num_labels", 2)
        return tuple(f"LABEL_{number}" for number in range(int(count) if 0 < count < LARGEST else 2))
    try:
        numbered = {int(key): str(name) for key, name in known.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise StudentError(f"{path}: id2label does not map class numbers to names") from error
    if sorted(numbered) != list(range(len(numbered))):
        raise StudentError(f"{path}: id2label numbers its classes {sorted(numbered)[:8]}, not from 0 without a gap")
    return tuple(numbered[number] for number in range(len(numbered)))


def _check_labels(path: Path, config: Mapping[str, Any], names: Sequence[str]) -> None:
    if len(names) < 2:
        raise StudentError(f"{path}: {len(names)} label(s) given or found; two are the fewest to tell apart")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise StudentError(f"{path}: the label {twice!r} stands for two classes; name each class once")
    kind = config.get("problem_type")
    if kind not in (None, "single_label_classification"):
        raise StudentError(f"{path}: problem_type is {kind!r}; classifiers with one label a text are served")


def _set_labels(config: dict[str, Any], names: Sequence[str]) -> None:
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    config["label2id"] = {name: index for index, name in enumerate(names)}
    config.pop("num_labels", None)


def _shape(path: Path, anatomy: Anatomy, config: Mapping[str, Any]) -> Shape:
    try:
        shape = anatomy.shape(config)
    except KeyError as error:
        raise StudentError(f"{path} lacks {error}, which the family {anatomy.model_type} needs") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise StudentError(f"{path} is not a configuration of the family {anatomy.model_type}: {error}") from error
    names = ["layers", "hidden", "heads", "neurons", "vocabulary", "positions"]
    if anatomy.kind == "encoder-decoder":
        names += ["decoder_layers", "decoder_heads", "decoder_neurons"]
    sizes = {name: getattr(shape, name) for name in names}
    for name, size in {**sizes, "embedding": shape.embedding}.items():
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= LARGEST:
            field = anatomy.config_fields.get(name, name)
            raise StudentError(f"{path} has {field} {size!r}, where a positive whole number is expected")
    width = shape.width_of_head
    if not isinstance(width, int) or isinstance(width, bool) or not 0 <= width <= LARGEST:
        field = anatomy.config_fields.get("head_width", "head_dim")
        raise StudentError(f"{path} has {field} {width!r}, where a positive whole number is expected")
    if anatomy.heads_divide_hidden and shape.hidden % shape.heads:
        raise StudentError(f"{path} has {shape.heads} heads, which do not divide the hidden width of {shape.hidden}")
    if not isinstance(shape.eps, int | float) or not 0 <= shape.eps < 1:
        raise StudentError(f"{path} has a layer norm epsilon of {shape.eps!r}")
    if shape.positions <= shape.position_offset:
        raise StudentError(f"{path} has {shape.positions} positions, {shape.position_offset} of which are for padding")
    return shape


# Weights
def _prefixed(anatomy: Anatomy, task: Task, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors named as the task's architecture names them, whichever architecture they were saved from."""
    prefix = anatomy.prefix
    if task == "embed":
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if any(name.startswith(prefix) for name in state):
        return dict(state)
    return {prefix + name: tensor for name, tensor in state.items()}


def _in_order(
    anatomy: Anatomy, task: Task, state: dict[str, torch.Tensor], present: Sequence[str], names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The head's last layer with its rows in the order of ``names``, or without it where these are other labels."""
    if tuple(present) == tuple(names):
        return state
    ordered = dict(state)
    for parameter in anatomy.heads_of.get(task, ()):
        if "labels" not in parameter.axes or parameter.name not in state:
            continue
        tensor = ordered.pop(parameter.name)
        if sorted(present) == sorted(names) and tensor.shape[0] == len(names):
            ordered[parameter.name] = tensor[[list(present).index(name) for name in names]]
    return ordered


def _fit(
    folder: Path,
    anatomy: Anatomy,
    task: Task,
    shape: Shape,
    state: Mapping[str, torch.Tensor],
    deviation: float,
    seed: int,
) -> dict[str, torch.Tensor]:
    """The tensors that the task needs, heads made where there are none."""
    heads = () if task in WRITING_TASKS else anatomy.heads_of.get(task, ())
    head_names = {parameter.name for parameter in heads}
    if anatomy.kind != "encoder":
        _refuse_unknown(folder, anatomy, task, shape, state)
    sizes = _sizes(shape)
    kept: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in anatomy.layout(task, shape).items():
        tensor = state.get(name)
        expected = tuple(sizes.get(axis, -1) for axis in parameter.axes)
        if tensor is None and name in head_names:
            tensor = _new_head(parameter, expected, generator, deviation)
        if tensor is None:
            raise StudentError(f"{folder}: the weights lack {name}, which a {anatomy.model_type} for {task} needs")
        if not tensor.is_floating_point():
            raise StudentError(f"{folder}: {name} is stored as {tensor.dtype}; give a checkpoint in float")
        if not _fits(tensor, expected):
            wanted = " x ".join("any" if size == -1 else str(size) for size in expected)
            raise StudentError(
                f"{folder}: {name} is {' x '.join(map(str, tensor.shape))}, and config.json asks for {wanted}"
            )
        tensor = tensor.to(torch.float32).contiguous()
        if not bool(torch.isfinite(tensor).all()):
            raise StudentError(f"{folder}: {name} holds values that are not finite; the checkpoint is damaged")
        kept[name] = tensor
    return kept


def _refuse_unknown(
    folder: Path, anatomy: Anatomy, task: Task, shape: Shape, state: Mapping[str, torch.Tensor]
) -> None:
    """A tensor that the family's program would not use tells that the checkpoint is of another kind."""
    layout = anatomy.layout(task, shape)
    tied = {parameter.name for parameter in anatomy.heads_of.get(task, ())}
    unknown = sorted(name for name in state if name not in layout and name not in tied and not anatomy.is_ignored(name))
    if unknown:
        raise StudentError(
            f"{folder}: the weights hold {unknown[0]} ({len(unknown)} such tensors), which a {anatomy.model_type} with "
            "this config.json has no use for; config.json and weights are not of one student, or of a kind that is "
            "not described"
        )


def _sizes(shape: Shape) -> dict[str, int]:
    return {
        "vocabulary": shape.vocabulary,
        "positions": shape.positions,
        "embedding": shape.embedding,
        "hidden": shape.hidden,
        "heads": shape.heads * shape.head_width,
        "head": shape.heads,
        "kv_heads": shape.kv_heads * shape.head_width,
        "joined": (shape.heads + 2 * shape.kv_heads) * shape.head_width,
        "head_width": shape.head_width,
        "sinusoids": shape.hidden,
        "neurons": shape.neurons,
        "labels": shape.labels,
        "decoder_heads": shape.decoder_heads * shape.decoder_head_width,
        "decoder_head": shape.decoder_heads,
        "cross_heads": shape.decoder_heads * shape.decoder_head_width,
        "decoder_neurons": shape.decoder_neurons,
    }


def _fits(tensor: torch.Tensor, expected: tuple[int, ...]) -> bool:
    return tensor.dim() == len(expected) and all(
        actual > 0 and size in (-1, actual) for size, actual in zip(expected, tensor.shape, strict=True)
    )


def _new_head(
    parameter: Parameter, sizes: tuple[int, ...], generator: torch.Generator, deviation: float
) -> torch.Tensor:
    if parameter.kind in ("bias", "norm"):
        return torch.zeros(sizes)
    return torch.randn(sizes, generator=generator) * deviation


# Tokenizer
def _check_tokenizer(folder: Path, tokenizer: Tokenizer, shape: Shape) -> None:
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise StudentError(f"{folder}: its tokenizer knows no tokens; save the student's tokenizer.json there")
    token, number = max(vocabulary.items(), key=lambda item: item[1])
    if number >= shape.vocabulary:
        raise StudentError(
            f"{folder}: its tokenizer gives the token {token!r} the number {number}, and the weights have "
            f"{shape.vocabulary} tokens: tokenizer and weights are not of one student"
        )


def _pad_id(path: Path, student: Student) -> int:
    token = special_token(student.tokenizer_config, "pad_token")
    found = student.tokenizer.token_to_id(token) if token is not None else None
    if found is not None:
        return int(found)
    number = student.config.get("pad_token_id")
    if number is None:
        # A writer without a token for padding is padded with the one that ends a text, as is usual.
        return student.eos_ids[0] if student.task == "generate" and student.eos_ids else 0
    if not isinstance(number, int) or not 0 <= number < student.shape.vocabulary:
        raise StudentError(f"{path} has pad_token_id {number!r}, which is not the number of a token")
    return number
