"""Recovery: a pruned student trained back, in float and on the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgescribe.converters.advance import Advance
from edgescribe.converters.anatomy import ENCODERS
from edgescribe.converters.checkpoint import load_graph, read_record
from edgescribe.converters.conversion_data import Texts, examples_of, hold_out, read_texts
from edgescribe.converters.distillation import DistillationWeights
from edgescribe.converters.export_checkpoint import export_checkpoint
from edgescribe.converters.predict import accuracy, predict
from edgescribe.converters.prune import Pruning
from edgescribe.converters.prune_checkpoint import prune_checkpoint
from edgescribe.converters.read import read_student
from edgescribe.converters.recipe import FLOAT, LADDER, ROUND_ONLY, Recipe, Shares
from edgescribe.converters.recover import recover, with_relu
from edgescribe.converters.recover_checkpoint import recover_checkpoint
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training import TrainingSettings
from edgescribe.errors import InputError, OutputError, StudentError, UsageError

Student = Any
SHORT = Recipe("short", keep=Shares(vocabulary=False), training=TrainingSettings(epochs=2, learning_rate=1e-3))


@pytest.fixture(scope="module")
def student(topic_files: Any) -> Student:
    return read_student(topic_files.student, "classify")


@pytest.fixture(scope="module")
def texts(topic_files: Any) -> tuple[Texts, Texts]:
    return read_texts(topic_files.train, "classify"), read_texts(topic_files.validation, "classify")


def score(graph: TorchGraph, texts: Texts) -> float:
    examples = examples_of(texts, graph.student)
    return accuracy(predict(graph, examples), examples)


@pytest.mark.parametrize("precision", ["w8a8-static", "w8a8-dynamic"])
def test_a_student_on_the_grid_is_as_good_as_before(
    precision: Any, student: Student, texts: tuple[Texts, Texts]
) -> None:
    seen: list[Advance] = []
    recovered = recover(
        student, student, replace(SHORT, precision=precision), *texts, changed=False, on_advance=seen.append
    )
    assert [name for name, _ in recovered.phases] == ["grid"]
    assert recovered.graph.precision == precision
    assert score(recovered.graph, texts[1]) >= score(TorchGraph(student), texts[1]) - 0.05
    stages = list(dict.fromkeys(each.stage for each in seen))
    assert stages == ["cutting texts into tokens", "calibrating", "training on the grid"]
    for stage in stages:
        parts = [each.fraction for each in seen if each.stage == stage]
        assert parts == sorted(parts)
        assert parts[-1] == 1.0
    assert "loss" in seen[-1].detail
    assert "validation" in seen[-1].detail


def test_what_was_changed_is_recovered_in_float_first(student: Student, texts: tuple[Texts, Texts]) -> None:
    torch.manual_seed(0)
    damaged = student.with_state(
        {
            name: tensor + 0.15 * tensor.std() * torch.randn_like(tensor) if tensor.dim() == 2 else tensor
            for name, tensor in student.state.items()
        }
    )
    recovered = recover(with_relu(damaged), student, SHORT, *texts, changed=True)
    assert [name for name, _ in recovered.phases] == ["float", "grid"]
    first = recovered.phases[0][1].losses
    assert np.mean(first[-3:]) < np.mean(first[:3])
    assert recovered.graph.shape.activation == "relu"


def test_rounding_alone_trains_nothing(student: Student, texts: tuple[Texts, Texts]) -> None:
    rounded = recover(student, student, ROUND_ONLY, *texts, changed=False)
    assert rounded.phases == ()
    assert score(rounded.graph, texts[1]) >= score(TorchGraph(student), texts[1]) - 0.1
    as_it_is = recover(student, student, FLOAT, *texts, changed=False)
    assert as_it_is.graph.precision == "fp32"
    for name, tensor in as_it_is.graph.state().items():
        assert (tensor == student.state[name]).all()


@pytest.mark.parametrize("family", ENCODERS)
def test_every_family_takes_relu(family: str, make_student: Callable[..., Student]) -> None:
    student = make_student(family)
    changed = with_relu(student)
    assert changed.shape.activation == "relu"
    assert student.shape.activation != "relu"


@pytest.mark.parametrize("task", ["tag", "embed"])
def test_other_tasks(task: Any, make_student: Callable[..., Student]) -> None:
    student = make_student("bert", task)
    rows = ["a small game of chess", "the network daemon routes", "plays music files", "a mail reader"] * 6
    labels = [tuple("games" for _ in text.split()) for text in rows] if task == "tag" else []
    train, held = hold_out(Texts(task, rows, labels, ""), 0)
    settings = TrainingSettings(epochs=1, batch_size=8, losses=DistillationWeights(soft=1.0))
    recovered = recover(student, student, replace(SHORT, training=settings), train, held, changed=False)
    (phase,) = recovered.phases
    assert len(phase[1].history) == 1
    assert np.isfinite(phase[1].losses).all()
    if task == "embed":
        assert phase[1].best_score > 0.9


def test_the_stages_by_themselves(topic_files: Any, tmp_path: Path) -> None:
    pruned = prune_checkpoint(
        topic_files.student,
        task="classify",
        train=topic_files.train,
        out=tmp_path / "pruned",
        pruning=Pruning(layers=1, neurons=64, vocabulary=0),
    )
    assert (pruned.after.layers, pruned.after.neurons, pruned.before.layers) == (1, 64, 2)
    assert pruned.parameters_after < pruned.parameters_before
    assert read_student(tmp_path / "pruned", "classify").shape == pruned.after
    recovered = recover_checkpoint(
        tmp_path / "pruned",
        teacher=topic_files.student,
        task="classify",
        train=topic_files.train,
        validation=topic_files.validation,
        recipe=SHORT,
        out=tmp_path / "recovered",
    )
    assert [curve.name for curve in recovered.training] == ["float", "grid"]
    assert recovered.precision == "w8a8-static"
    record = read_record(tmp_path / "recovered")
    assert record["recipe"]["name"] == "short"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned", "recovered"]
    bundle = export_checkpoint(
        tmp_path / "recovered", out=tmp_path / "bundle", texts=topic_files.evaluation, runtimes=["onnxruntime"]
    )
    assert bundle.manifest.provenance.recipe["name"] == "short"
    assert [(each.runtime, each.precision) for each in bundle.manifest.artifacts] == [("onnxruntime", "w8a8-static")]
    from edgescribe import load

    texts = read_texts(topic_files.evaluation, "classify")
    graph = load_graph(tmp_path / "recovered")
    outputs = predict(graph, examples_of(texts, graph.student))
    with load(bundle.folder, threads=1) as ready:
        answers = ready.classify(texts.texts)
    same = [graph.student.labels[int(out.argmax())] == got.label for out, got in zip(outputs, answers, strict=True)]
    assert np.mean(same) >= 0.97


def test_a_plain_checkpoint_is_exported_in_float(topic_files: Any, tmp_path: Path) -> None:
    bundle = export_checkpoint(
        topic_files.student, out=tmp_path / "b", texts=topic_files.evaluation, runtimes=["litert"], max_tokens=20
    )
    (artifact,) = bundle.manifest.artifacts
    assert artifact.precision == "fp32"
    assert artifact.buckets == (20,)
    assert bundle.manifest.tokenizer.max_tokens == 20


def test_refusals(
    topic_files: Any, student: Student, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = {"task": "classify", "train": topic_files.train}
    with pytest.raises(UsageError, match="either a recipe, or sizes"):
        prune_checkpoint(topic_files.student, **data, out=tmp_path / "x")
    with pytest.raises(UsageError, match="either a recipe, or sizes"):
        prune_checkpoint(topic_files.student, **data, out=tmp_path / "x", recipe="light", pruning=Pruning(layers=1))
    with pytest.raises(UsageError, match="nothing to prune"):
        prune_checkpoint(topic_files.student, **data, out=tmp_path / "x", pruning=Pruning())
    with pytest.raises(OutputError, match="not a checkpoint"):
        prune_checkpoint(topic_files.student, **data, out=tmp_path.parent, recipe="light")
    with pytest.raises(InputError, match="nothing to resume"):
        recover_checkpoint(
            topic_files.student, teacher=topic_files.student, **data, out=tmp_path / "x", resume=True, recipe=LADDER[0]
        )
    stranger = tmp_path_factory.mktemp("stranger")
    replace(student, labels=("games", "cooking", "sound")).save(stranger)
    with pytest.raises(StudentError, match="names other classes"):
        recover_checkpoint(topic_files.student, teacher=stranger, **data, out=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_with_its_classes_in_another_order(topic_files: Any, student: Student, tmp_path: Path) -> None:
    from edgescribe.converters.conversion_request import read_teacher

    turned = replace(student, labels=student.labels[::-1])
    state = {
        name: tensor.flip(0) if name.startswith("classifier.") else tensor for name, tensor in student.state.items()
    }
    turned.with_state(state).save(tmp_path / "turned")
    teacher = read_teacher(tmp_path / "turned", student)
    assert teacher.labels == student.labels
    assert (teacher.state["classifier.weight"] == student.state["classifier.weight"]).all()
