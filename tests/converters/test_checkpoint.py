"""Students and trained graphs on disk."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edgescribe.converters.checkpoint import (
    QUANTIZERS,
    RECORD,
    check_checkpoint_output,
    load_graph,
    read_record,
    save_graph,
    save_student,
    task_of,
)
from edgescribe.converters.predict import predict
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training import calibrate
from edgescribe.converters.training_data import make_examples
from edgescribe.errors import OutputError, StudentError

Student = Any


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """As on a disk that is full: writing more than ``size`` bytes to any file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["w8a8-static", "w8a8-dynamic", "fp32"])
def graph(request: pytest.FixtureRequest, make_student: Callable[..., Student], sentences: list[str]) -> TorchGraph:
    student = make_student("bert")
    made = TorchGraph(student, request.param)
    calibrate(made, make_examples(student, sentences, None))
    return made.eval()


def test_a_trained_graph_answers_the_same_when_read_back(
    graph: TorchGraph, sentences: list[str], tmp_path: Path
) -> None:
    save_graph(graph, tmp_path / "saved", {"recipe": {"name": "x"}})
    read = load_graph(tmp_path / "saved")
    assert read.precision == graph.precision
    assert not read.training
    examples = make_examples(graph.student, sentences, None)
    for ours, theirs in zip(predict(graph, examples), predict(read, examples), strict=True):
        assert (ours == theirs).all()
    record = read_record(tmp_path / "saved")
    assert (record["precision"], record["task"], record["recipe"]) == (graph.precision, "classify", {"name": "x"})


def test_plain_transformers_loads_it(make_student: Callable[..., Student], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    student = make_student("bert")
    graph = TorchGraph(student, "w8a8-dynamic")
    save_graph(graph, tmp_path / "saved")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    for name, tensor in model.state_dict().items():
        if name in student.state:
            assert torch.equal(tensor, student.state[name])


def test_grids_that_are_missing_or_do_not_fit(make_student: Callable[..., Student], tmp_path: Path) -> None:
    student = make_student("bert")
    graph = TorchGraph(student, "w8a8-static")
    folder = tmp_path / "saved"
    save_graph(graph, folder)
    content = (folder / QUANTIZERS).read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        (folder / QUANTIZERS).write_bytes(damaged)
        with pytest.raises(StudentError, match="edgescribe recover"):
            load_graph(folder)
    (folder / QUANTIZERS).unlink()
    with pytest.raises(StudentError, match="edgescribe recover"):
        load_graph(folder)
    (folder / RECORD).write_text('{"precision": "w2a2", "task": "classify"}')
    with pytest.raises(StudentError, match="w2a2"):
        load_graph(folder)
    (folder / RECORD).write_text("{")
    with pytest.raises(StudentError, match="JSON"):
        load_graph(folder)


def test_what_a_folder_is_made_for(make_checkpoint: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    for task in ("classify", "tag", "embed"):
        assert task_of(make_checkpoint("bert", task)[0]) == task
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForFun"]}))
    with pytest.raises(StudentError, match="--task"):
        task_of(tmp_path)
    with pytest.raises(StudentError, match=r"config\.json|no folder"):
        load_graph(tmp_path / "missing")


def test_a_checkpoint_is_replaced_whole(make_student: Callable[..., Student], tmp_path: Path) -> None:
    student = make_student("bert")
    save_student(student, tmp_path / "saved")
    before = (tmp_path / "saved" / "model.safetensors").read_bytes()
    changed = student.with_state({name: tensor + 1 for name, tensor in student.state.items()})
    with no_file_over(2000), pytest.raises(OutputError, match="not written"):
        save_student(changed, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    save_student(changed, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_nothing_is_left_where_writing_fails(make_student: Callable[..., Student], tmp_path: Path) -> None:
    student = make_student("bert")
    for size in (0, 100, 3000):
        with no_file_over(size), pytest.raises(OutputError):
            save_graph(TorchGraph(student, "w8a8-static"), tmp_path / "new")
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        save_student(student, tmp_path / "file" / "x")


def test_outputs_that_are_refused(make_student: Callable[..., Student], tmp_path: Path) -> None:
    check_checkpoint_output(tmp_path / "new", False)
    (tmp_path / "empty").mkdir()
    check_checkpoint_output(tmp_path / "empty", True)
    save_student(replace(make_student("bert")), tmp_path / "saved")
    with pytest.raises(OutputError, match="exists already"):
        check_checkpoint_output(tmp_path / "saved", False)
    check_checkpoint_output(tmp_path / "saved", True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(OutputError, match="not a checkpoint"):
        check_checkpoint_output(tmp_path / "photos", True)
