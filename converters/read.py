"""Reading a student: a checkpoint folder, or a hub id where a hub can be reached, into a :class:`Student`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from ..errors import StudentError
from .anatomy import Anatomy, Parameter, Shape, Task, anatomy_of
from .student import Student

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"


def read_student(
    source: str | Path, task: Task, *, labels: Sequence[str] | None = None, allow_pickle: bool = False, seed: int = 0
) -> Student:
    """Read a student for a task.

    Args:
        source: a checkpoint folder, or a hub id (``owner/name``) where no such folder exists.
        labels: class or tag names; where they differ from the checkpoint's, its head is made anew for them.
        allow_pickle: also take ``pytorch_model.bin``; off, since unpickling runs code from the file.
        seed: of the random weights of a head that the checkpoint does not have.

    Raises:
        StudentError: not a checkpoint, a family that is not described, missing or misshapen weights, no tokenizer.
    """
    folder = _folder(source)
    config = _config(folder)
    anatomy = anatomy_of(str(config["model_type"]))
    if task not in anatomy.architectures:
        raise StudentError(f"{source}: the family {anatomy.model_type} does not serve the task {task!r}")
    state, sha256 = _weights(folder, allow_pickle)
    tokenizer, tokenizer_config = _tokenizer(folder)
    names = _labels(config, labels, task)
    if task != "embed":
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
        config.pop("num_labels", None)
    shape = _shape(folder, anatomy, config)
    kept = _fit(folder, anatomy, task, shape, state, config, seed)
    limit = tokenizer_config.get("model_max_length")
    longest = shape.positions - shape.position_offset
    max_tokens = int(min(longest, limit)) if isinstance(limit, int | float) and limit > 1 else longest
    return Student(
        config=config,
        state=kept,
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        task=task,
        labels=names,
        max_tokens=max_tokens,
        pad_id=_pad_id(config, tokenizer, tokenizer_config),
        source=str(source),
        sha256=sha256,
    )


def _folder(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise StudentError(f"{source} is a file; give the checkpoint's folder (with config.json and {WEIGHTS})")
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise StudentError(f"there is no folder {source}; give a checkpoint folder, or a hub id such as owner/name")
    return _download(text)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", PICKLED]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StudentError(
            f"there is no folder {name}, and the hub did not give {name!r}: {reason}. "
            "Check the name, or download the checkpoint and give its folder"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise StudentError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise StudentError(f"{path} holds {type(content).__name__} where an object is expected")
    return content


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise StudentError(f"{folder} is not a checkpoint: it has no config.json")
    config = _json(path)
    if not isinstance(config.get("model_type"), str):
        raise StudentError(f"{path} does not name a model_type, so the student's family is unknown")
    return config


def _weights(folder: Path, allow_pickle: bool) -> tuple[dict[str, torch.Tensor], str]:
    paths = [folder / WEIGHTS]
    if not paths[0].is_file() and (folder / INDEX).is_file():
        names = sorted(set(_json(folder / INDEX).get("weight_map", {}).values()))
        if not names or any(Path(name).name != name for name in names):
            raise StudentError(f"{folder / INDEX} does not list the weight files of this folder")
        paths = [folder / name for name in names]
    if all(path.is_file() for path in paths):
        state: dict[str, torch.Tensor] = {}
        for path in paths:
            try:
                state.update(load_file(path))
            except (SafetensorError, OSError, ValueError) as error:
                raise StudentError(f"{path} is damaged and cannot be read: {error}") from error
        return state, _hash(paths)
    pickled = folder / PICKLED
    if not pickled.is_file():
        missing = next(path.name for path in paths if not path.is_file())
        raise StudentError(f"{folder} has no {missing}; convert the checkpoint to safetensors and put it there")
    if not allow_pickle:
        raise StudentError(
            f"{folder} has its weights in {PICKLED} only; loading a pickle can run code from the file. "
            "Convert it to safetensors, or pass --allow-pickle if you trust where it comes from"
        )
    try:
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as error:
        raise StudentError(f"{pickled} cannot be read as a pickle of plain tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise StudentError(f"{pickled} does not hold a mapping of names to tensors")
    return state, _hash([pickled])


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    config_path = folder / "tokenizer_config.json"
    config = _json(config_path) if config_path.is_file() else {}
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise StudentError(f"{path} is not a tokenizer that can be read: {error}") from error
    else:
        tokenizer = _converted_tokenizer(folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, config


def _converted_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of older vocabulary files (vocab.txt, merges, sentencepiece), as transformers makes it."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        backend = slow.backend_tokenizer
    except Exception as error:
        raise StudentError(
            f"{folder} has no tokenizer.json, and none could be made from its other files: {error}"
        ) from error
    if not isinstance(backend, Tokenizer):
        raise StudentError(f"{folder}: its tokenizer has no fast form; save a tokenizer.json beside the weights")
    return Tokenizer.from_str(backend.to_str())


def _labels(config: dict[str, Any], labels: Sequence[str] | None, task: Task) -> tuple[str, ...]:
    if task == "embed":
        return ()
    if labels is not None:
        return tuple(labels)
    known = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(known[key]) for key in sorted(known, key=int))


def _shape(folder: Path, anatomy: Anatomy, config: dict[str, Any]) -> Shape:
    try:
        return anatomy.shape(config)
    except KeyError as error:
        raise StudentError(f"{folder / 'config.json'} lacks {error}, which the family {anatomy.model_type} needs") from error


def _fit(
    folder: Path,
    anatomy: Anatomy,
    task: Task,
    shape: Shape,
    state: dict[str, torch.Tensor],
    config: dict[str, Any],
    seed: int,
) -> dict[str, torch.Tensor]:
    """The tensors that the task needs, named as its architecture names them, heads made where there are none."""
    wanted = anatomy.layout(task, shape)
    prefix = anatomy.prefix
    if task == "embed":
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    elif not any(name.startswith(prefix) for name in state):
        state = {prefix + name: tensor for name, tensor in state.items()}
    head_names = {parameter.name for parameter in anatomy.heads_of.get(task, ())}
    sizes = _sizes(shape)
    kept: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wanted.items():
        tensor = state.get(name)
        expected = tuple(sizes.get(axis, -1) for axis in parameter.axes)
        if name in head_names and (tensor is None or not _fits(tensor, expected)):
            tensor = _new_head(parameter, expected, generator, float(config.get("initializer_range", 0.02)))
        if tensor is None:
            raise StudentError(f"{folder}: the weights lack {name}, which a {anatomy.model_type} for {task} needs")
        if not tensor.is_floating_point():
            raise StudentError(f"{folder}: {name} is stored as {tensor.dtype}; give a checkpoint in float")
        if not _fits(tensor, expected):
            raise StudentError(
                f"{folder}: {name} has the shape {tuple(tensor.shape)}, and config.json asks for {expected}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise StudentError(f"{folder}: {name} holds values that are not finite; the checkpoint is damaged")
        kept[name] = tensor.to(torch.float32).contiguous()
    return kept


def _sizes(shape: Shape) -> dict[str, int]:
    return {
        "vocabulary": shape.vocabulary,
        "positions": shape.positions,
        "embedding": shape.embedding,
        "hidden": shape.hidden,
        "heads": shape.heads * shape.head_width,
        "head": shape.heads,
        "head_width": shape.head_width,
        "sinusoids": shape.hidden,
        "neurons": shape.neurons,
        "labels": shape.labels,
    }


def _fits(tensor: torch.Tensor, expected: tuple[int, ...]) -> bool:
    return tensor.dim() == len(expected) and all(
        size in (-1, actual) for size, actual in zip(expected, tensor.shape, strict=True)
    )


def _new_head(
    parameter: Parameter, sizes: tuple[int, ...], generator: torch.Generator, deviation: float
) -> torch.Tensor:
    if parameter.kind in ("bias", "norm"):
        return torch.zeros(sizes)
    return torch.randn(sizes, generator=generator) * deviation


def _pad_id(config: dict[str, Any], tokenizer: Tokenizer, tokenizer_config: dict[str, Any]) -> int:
    token = tokenizer_config.get("pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return int(config.get("pad_token_id") or 0)
