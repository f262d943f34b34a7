"""A trained graph on disk: an ordinary checkpoint folder with the learned activation grids beside the weights.

``model.safetensors`` loads with plain transformers; ``quantizers.safetensors`` and ``edgescribe.json`` hold what
only edgescribe needs to export the very grid that was trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import StudentError
from .anatomy import Task
from .read import read_student
from .student import Student
from .torch_graph import TorchGraph

QUANTIZERS = "quantizers.safetensors"
RECORD = "edgescribe.json"


def save_student(student: Student, folder: Path, record: dict[str, Any] | None = None) -> None:
    """Write a checkpoint folder whole or not at all, replacing what stands there."""
    _replace(folder, lambda aside: _write(student, aside, record or {}))


def save_graph(graph: TorchGraph, folder: Path, record: dict[str, Any] | None = None) -> None:
    """Write a trained graph: its weights as a checkpoint, its grids beside them, whole or not at all."""
    student = graph.student.with_state(graph.state())
    content = {**(record or {}), "precision": graph.precision}

    def write(aside: Path) -> None:
        _write(student, aside, content)
        state = {name: value.contiguous().clone() for name, value in graph.quantizer_state().items()}
        save_file(state, aside / QUANTIZERS)

    _replace(folder, write)


def load_graph(folder: Path, task: Task | None = None) -> TorchGraph:
    """Read a graph that :func:`save_graph` wrote; a plain checkpoint gives a graph in float.

    Raises:
        StudentError: as for :func:`~edgescribe.converters.read.read_student`, or grids that do not fit the weights.
    """
    record = read_record(folder)
    student = read_student(folder, task or record.get("task") or "classify")
    precision = str(record.get("precision", "fp32"))
    try:
        graph = TorchGraph(student, precision)
    except ValueError as error:
        raise StudentError(f"{folder / RECORD}: {error}") from error
    if precision == "fp32":
        return graph.eval()
    try:
        graph.load_quantizer_state(load_file(folder / QUANTIZERS))
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise StudentError(
            f"{folder} was trained for {precision}, and its {QUANTIZERS} is missing or does not fit: {error}. "
            "Run `edgescribe recover` again"
        ) from error
    return graph.eval()


def read_record(folder: Path) -> dict[str, Any]:
    """What edgescribe noted about a checkpoint that it wrote (task, precision, recipe); empty for any other."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise StudentError(f"{path} cannot be read as JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _write(student: Student, folder: Path, record: dict[str, Any]) -> None:
    student.save(folder, torch.float32)
    content = {"task": student.task, "max_tokens": student.max_tokens, **record}
    (folder / RECORD).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _replace(folder: Path, write: Any) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        write(aside)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
