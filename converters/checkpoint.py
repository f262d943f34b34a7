"""A trained graph on disk: an ordinary checkpoint folder with the learned activation grids beside the weights.

``model.safetensors`` loads with plain transformers; ``quantizers.safetensors`` and ``edgescribe.json`` hold what
only edgescribe needs to export the very grid that was trained.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import OutputError, StudentError
from .anatomy import Task, anatomy_of
from .json_files import read_object
from .output_errors import output_errors
from .read import read_student
from .student import Student
from .torch_decoder import graph_of
from .torch_graph import TorchGraph

QUANTIZERS = "quantizers.safetensors"
RECORD = "edgescribe.json"


def save_student(student: Student, folder: Path, record: dict[str, Any] | None = None) -> None:
    """Write a checkpoint folder whole or not at all, replacing what stands there.

    Raises:
        OutputError: it cannot be written; what stood there stays.
    """
    _replace(folder, lambda aside: _write(student, aside, record or {}))


def save_graph(graph: TorchGraph, folder: Path, record: dict[str, Any] | None = None) -> None:
    """Write a trained graph: its weights as a checkpoint, its grids beside them, whole or not at all.

    Raises:
        OutputError: it cannot be written; what stood there stays.
    """
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
    is_checkpoint = (folder / "config.json").is_file()  # else reading tells what is wrong with it
    student = read_student(folder, task or (task_of(folder) if is_checkpoint else "classify"))
    precision = str(record.get("precision", "fp32"))
    try:
        graph = graph_of(student, precision)
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


def task_of(folder: Path) -> Task:
    """What a checkpoint folder is made to do: as edgescribe noted, or by the model that its configuration names.

    Raises:
        StudentError: that cannot be told.
    """
    found = read_record(folder).get("task")
    path = folder / "config.json"
    if found is None and path.is_file():
        config = read_object(path)
        architectures = anatomy_of(str(config.get("model_type"))).architectures
        named = config.get("architectures")
        first = named[0] if isinstance(named, list) and named else None
        found = next((task for task, architecture in architectures.items() if architecture == first), None)
    for task in get_args(Task):
        if found == task:
            return cast(Task, task)
    raise StudentError(f"{folder} does not tell what it is made to do; say so: --task {', '.join(get_args(Task))}")


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


def check_checkpoint_output(folder: Path, force: bool) -> None:
    """Check, before any work is done, that a checkpoint may be written to ``folder``.

    Raises:
        OutputError: it exists and ``force`` is not set, or it is something other than a checkpoint or an empty folder.
    """
    try:
        if not os.path.lexists(folder):
            return
        replaceable = folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(folder)!r} cannot be looked at ({error}); give another path") from error
    if not replaceable:
        raise OutputError(f"{folder} exists and is not a checkpoint, so it is not replaced; give another path")
    if not force:
        raise OutputError(f"{folder} exists already; give another path, or --force (force=True) to replace it")


def _write(student: Student, folder: Path, record: dict[str, Any]) -> None:
    student.save(folder, torch.float32)
    content = {"task": student.task, "max_tokens": student.max_tokens, **record}
    (folder / RECORD).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder beside the target, flush it to the disk and rename it into place."""
    aside, old = (folder.with_name(f".{folder.name}.{name}") for name in ("writing", "old"))
    try:
        with output_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            write(aside)
            for path in [*aside.iterdir(), aside]:
                _flush(path)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            try:
                aside.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
            _flush(folder.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
