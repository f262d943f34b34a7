"""The weight files of a checkpoint folder: one safetensors file, several with an index, or (on request) a pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import StudentError
from .json_files import read_object

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"


def read_weights(folder: Path, allow_pickle: bool = False) -> tuple[dict[str, torch.Tensor], str]:
    """Every tensor by its name in the file, as stored, and the SHA-256 of the files one after the other.

    Names of old checkpoints (``….gamma`` and ``….beta`` of norms) are brought up to date.

    Raises:
        StudentError: no weights, damaged ones, or a pickle without ``allow_pickle``.
    """
    paths = _safetensors(folder)
    if paths:
        state: dict[str, torch.Tensor] = {}
        for path in paths:
            if not path.is_file():
                raise StudentError(f"{folder / INDEX} lists {path.name}, which is not there; download it too")
            try:
                state.update(load_file(path))
            except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
                raise StudentError(f"{path} is damaged and cannot be read: {error}. Download it again") from error
        return _renamed(state), _hash(paths)
    path = folder / PICKLED
    if not path.is_file():
        raise StudentError(f"{folder} has no {WEIGHTS}; convert the checkpoint to safetensors and put it there")
    if not allow_pickle:
        raise StudentError(
            f"{folder} has its weights in {PICKLED} only; loading a pickle can run code from the file. "
            "Convert it to safetensors, or pass --allow-pickle if you trust where it comes from"
        )
    return _renamed(_unpickled(path)), _hash([path])


def _safetensors(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        return []
    files = read_object(index).get("weight_map")
    names = set(map(str, files.values())) if isinstance(files, dict) else set()
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise StudentError(f"{index} does not list the weight files of this folder; download the checkpoint again")
    return [folder / name for name in sorted(names)]


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise StudentError(
            f"{path} cannot be read as a pickle of plain tensors: {reason[0] if reason else type(error).__name__}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise StudentError(f"{path} does not hold a mapping of names to tensors")
    return state


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    endings = {".gamma": ".weight", ".beta": ".bias"}
    renamed = {}
    for name, tensor in state.items():
        ending = next((old for old in endings if name.endswith(old)), None)
        renamed[name if ending is None else name.removesuffix(ending) + endings[ending]] = tensor
    return renamed


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
