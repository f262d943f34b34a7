"""The training loop: schedule, accumulation, early stopping, checkpoints, kills, Ctrl-C, several processes."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edgescribe.converters.distillation import DistillationWeights
from edgescribe.converters.read import read_student
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training import Progress, TrainingSettings, calibrate, native_bf16, train
from edgescribe.converters.training_data import Example, make_examples
from edgescribe.errors import InputError, OutputError

LABELS_ALONE = DistillationWeights(soft=0, hidden=0, attention=0, labels=1.0)
SETTINGS = TrainingSettings(epochs=2, batch_size=16, learning_rate=1e-3, mixed_precision="no", losses=LABELS_ALONE)
Student = Any


@pytest.fixture(scope="module")
def student(topic_files: Any) -> Student:
    return read_student(topic_files.student, "classify")


@pytest.fixture(scope="module")
def examples(student: Student, topic_files: Any) -> list[Example]:
    rows = [json.loads(line) for line in topic_files.train.read_text().splitlines()][:96]
    return make_examples(student, [row["text"] for row in rows], [student.labels.index(row["label"]) for row in rows])


def nothing(_: TorchGraph) -> float:
    return 0.0


def scores(*values: float) -> Callable[[TorchGraph], float]:
    remaining = iter(values)
    return lambda _: next(remaining)


def test_learning_lowers_the_loss_and_the_same_seed_repeats_it(student: Student, examples: list[Example]) -> None:
    settings = replace(SETTINGS, epochs=4, dropout=0.1, learning_rate=3e-3)
    fresh = student.with_state({name: tensor + 0.2 for name, tensor in student.state.items()})
    first, second = (train(TorchGraph(fresh), examples, settings, evaluate=nothing) for _ in range(2))
    assert first.losses == second.losses
    assert sum(first.losses[-6:]) < sum(first.losses[:6])
    other = train(TorchGraph(fresh), examples, replace(settings, seed=1), evaluate=nothing)
    assert other.losses != first.losses


def test_progress_counts_updates(student: Student, examples: list[Example]) -> None:
    seen: list[Progress] = []
    result = train(TorchGraph(student), examples, SETTINGS, evaluate=scores(0.5, 0.25), report=seen.append)
    assert [each.step for each in seen] == list(range(1, 13))
    assert {each.steps for each in seen} == {12}
    assert [each.step for each in seen if each.score is not None] == [6, 12]
    assert seen[-1].seconds_left == 0
    assert result.steps == len(result.losses) == 12
    assert [row["step"] for row in result.history] == [6, 12]
    assert result.best_score == 0.5


def test_the_best_weights_are_in_the_graph_afterwards(student: Student, examples: list[Example]) -> None:
    kept: list[torch.Tensor] = []
    answers = iter([0.1, 0.9, 0.4])

    def score(graph: TorchGraph) -> float:
        kept.append(graph.weight("classifier.weight").detach().clone())
        return next(answers)

    graph = train(TorchGraph(student), examples, replace(SETTINGS, epochs=3), evaluate=score).graph
    assert torch.equal(graph.weight("classifier.weight"), kept[1])
    assert not torch.equal(kept[1], kept[2])
    assert not graph.training


def test_early_stopping_waits_for_patience(student: Student, examples: list[Example]) -> None:
    values = (0.5, 0.6, 0.6, 0.55, 0.7, 0.8)
    settings = replace(SETTINGS, epochs=6, patience=2)
    result = train(TorchGraph(student), examples, settings, evaluate=scores(*values))
    assert len(result.history) == 4
    assert result.best_score == 0.6
    patient = train(TorchGraph(student), examples, replace(settings, patience=3), evaluate=scores(*values))
    assert len(patient.history) == 6
    assert patient.best_score == 0.8


def test_several_evaluations_an_epoch(student: Student, examples: list[Example]) -> None:
    result = train(
        TorchGraph(student), examples, replace(SETTINGS, epochs=1, evaluations=3), evaluate=scores(0.1, 0.2, 0.3)
    )
    assert [row["step"] for row in result.history] == [2, 4, 6]


def test_accumulating_equals_a_bigger_batch(
    student: Student, examples: list[Example], in_double: Callable[[Student], Student]
) -> None:
    # 32 texts: one batch of 32, or four of 8 before the one update of an epoch. In float64, for Adam makes full steps
    # of gradients that are nothing but rounding.
    few, student = examples[:32], in_double(student)
    whole = replace(SETTINGS, epochs=5, batch_size=32, learning_rate=3e-3)
    parts = replace(whole, batch_size=8, accumulate=4)
    big, small = (train(TorchGraph(student), few, each, evaluate=nothing) for each in (whole, parts))
    assert big.steps == small.steps == 5
    assert small.losses == pytest.approx(big.losses, abs=1e-9)
    for name in student.state:
        assert torch.allclose(big.graph.weight(name), small.graph.weight(name), rtol=0, atol=1e-6), name


def test_the_rate_warms_up_and_falls_along_a_cosine(
    student: Student, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noting(self: torch.optim.AdamW, *arguments: Any, **keywords: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    settings = replace(SETTINGS, epochs=5, warmup=0.2, learning_rate=1e-3)  # 30 updates, 6 of them warming up
    train(TorchGraph(student), examples, settings, evaluate=nothing)
    expected = [
        1e-3 * (at / 6 if at < 6 else 0.5 * (1 + math.cos(math.pi * (at - 6) / 24))) for at in range(30)
    ]
    assert rates == pytest.approx(expected)


def test_gradients_are_clipped(student: Student, examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def noting(self: torch.optim.AdamW, *arguments: Any, **keywords: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    train(TorchGraph(student), examples, replace(SETTINGS, epochs=1, clip=1e-3), evaluate=nothing)
    assert max(norms) <= 1.01e-3


def test_mixed_precision_by_the_machine(student: Student, examples: list[Example]) -> None:
    # One process may train in one precision after the other.
    exact = train(TorchGraph(student), examples, SETTINGS, evaluate=nothing)
    mixed = train(TorchGraph(student), examples, replace(SETTINGS, mixed_precision="bf16"), evaluate=nothing)
    chosen = train(TorchGraph(student), examples, replace(SETTINGS, mixed_precision="auto"), evaluate=nothing)
    assert mixed.losses != exact.losses
    assert mixed.losses == pytest.approx(exact.losses, abs=0.05)
    assert chosen.losses == (mixed if native_bf16() else exact).losses
    assert {parameter.dtype for parameter in mixed.graph.parameters()} == {torch.float32}


def test_what_cannot_be_trained(student: Student, examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        train(TorchGraph(student), [], SETTINGS, evaluate=nothing)
    with pytest.raises(InputError, match="no folder of checkpoints"):
        train(TorchGraph(student), examples, SETTINGS, evaluate=nothing, resume=True)
    train(TorchGraph(student), examples, SETTINGS, evaluate=nothing, checkpoints=tmp_path)
    with pytest.raises(InputError, match="belong to another run"):
        train(
            TorchGraph(student), examples[:50], SETTINGS, evaluate=nothing, checkpoints=tmp_path, resume=True
        )


def test_a_finished_run_is_taken_up_without_training(student: Student, examples: list[Example], tmp_path: Path) -> None:
    settings = replace(SETTINGS, patience=1, epochs=5)
    first = train(
        TorchGraph(student), examples, settings, evaluate=scores(0.5, 0.4), checkpoints=tmp_path
    )
    assert first.steps == 12
    again = train(
        TorchGraph(student), examples, settings, evaluate=scores(), checkpoints=tmp_path, resume=True
    )
    assert again.losses == first.losses
    assert again.best_score == 0.5
    for name in student.state:
        assert torch.equal(first.graph.weight(name), again.graph.weight(name))


def test_a_full_disk_is_told_and_leaves_no_half_checkpoint(
    student: Student, examples: list[Example], tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match="was not written"):
            train(TorchGraph(student), examples, SETTINGS, evaluate=nothing, checkpoints=tmp_path / "states")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["run.json"]


INTERRUPTED = """
import json, os, signal, sys
from pathlib import Path
from edgescribe.converters.distillation import DistillationWeights
from edgescribe.converters.read import read_student
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training import TrainingSettings, train
from edgescribe.converters.training_data import make_examples

student_folder, data, checkpoints, presses = sys.argv[1:]
student = read_student(student_folder, "classify")
rows = [json.loads(line) for line in Path(data).read_text().splitlines()][:96]
examples = make_examples(student, [row["text"] for row in rows], [student.labels.index(row["label"]) for row in rows])
labels_alone = DistillationWeights(soft=0, hidden=0, attention=0, labels=1.0)
settings = TrainingSettings(
    epochs=2, batch_size=16, learning_rate=1e-3, mixed_precision="no", losses=labels_alone, dropout=0.1
)

def press(progress):
    if progress.step == 5:
        for _ in range(int(presses)):
            os.kill(os.getpid(), signal.SIGINT)
        print("held back", flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    train(TorchGraph(student), examples, settings, evaluate=lambda _: 0.0, checkpoints=Path(checkpoints), report=press)
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("interrupted")
"""


def interrupted(topic_files: Any, checkpoints: Path, presses: int) -> list[str]:
    """What a program of its own prints whose training gets Ctrl-C in its fifth step."""
    arguments = (topic_files.student, topic_files.train, checkpoints, presses)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.slow
def test_ctrl_c_keeps_the_state_of_the_last_step(
    student: Student, examples: list[Example], topic_files: Any, tmp_path: Path
) -> None:
    assert interrupted(topic_files, tmp_path, 1) == ["held back", "interrupted"]
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-5"]
    settings = replace(SETTINGS, dropout=0.1)
    whole = train(TorchGraph(student), examples, settings, evaluate=nothing)
    rest = train(TorchGraph(student), examples, settings, evaluate=nothing, checkpoints=tmp_path, resume=True)
    assert rest.losses == pytest.approx(whole.losses, abs=1e-6)


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(topic_files: Any, tmp_path: Path) -> None:
    assert interrupted(topic_files, tmp_path, 2) == ["interrupted"]
    assert not list(tmp_path.glob("step-*"))


KILLED = """
import sys
from pathlib import Path
from edgescribe.converters.read import read_student
from edgescribe.converters.conversion_data import examples_of, read_texts
from edgescribe.converters.predict import scorer
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training import TrainingSettings, calibrate, train

student_folder, data, checkpoints, resume = sys.argv[1:]
student = read_student(student_folder, "classify")
examples = examples_of(read_texts(Path(data), "classify"), student, student)
graph = TorchGraph(student, "w8a8-static")
calibrate(graph, examples)
settings = TrainingSettings(epochs=3, dropout=0.1, evaluations=2, checkpoint_seconds=0.0, learning_rate=1e-3)
result = train(
    graph, examples, settings, teacher=TorchGraph(student), evaluate=scorer(examples[:60]),
    checkpoints=Path(checkpoints), resume=resume == "resume",
    report=lambda progress: print("step", progress.step, flush=True),
)
import json
print(json.dumps({"losses": result.losses, "scores": [row["score"] for row in result.history]}))
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_killed_run_comes_to_the_same_losses(topic_files: Any, tmp_path: Path) -> None:
    def finished(*arguments: object) -> dict[str, list[float]]:
        out, _ = start(*arguments).communicate(timeout=300)
        found: dict[str, list[float]] = json.loads(out.splitlines()[-1])
        return found

    whole = finished(topic_files.student, topic_files.train, tmp_path / "whole", "anew")
    killed = start(topic_files.student, topic_files.train, tmp_path / "killed", "anew")
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.strip() == "step 14":
            killed.kill()
            break
    killed.stdout.close()
    assert killed.wait() == -signal.SIGKILL
    states = [path.name for path in (tmp_path / "killed").glob("step-*")]
    assert states
    assert "step-30" not in states
    resumed = finished(topic_files.student, topic_files.train, tmp_path / "killed", "resume")
    assert len(resumed["losses"]) == 30
    assert resumed["losses"] == pytest.approx(whole["losses"], abs=1e-6)
    assert resumed["scores"] == whole["scores"]


PARALLEL = """
import json, sys
from pathlib import Path
from edgescribe.converters.read import read_student
from edgescribe.converters.conversion_data import examples_of, read_texts
from edgescribe.converters.predict import scorer
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training import TrainingSettings, calibrate, train
import torch

student_folder, data, out = sys.argv[1:]
student = read_student(student_folder, "classify")
examples = examples_of(read_texts(Path(data), "classify"), student, student)
graph = TorchGraph(student, "w8a8-static")
calibrate(graph, examples)
settings = TrainingSettings(epochs=2, batch_size=16, checkpoint_seconds=0.0, mixed_precision="no")
result = train(
    graph, examples, settings, teacher=TorchGraph(student), evaluate=scorer(examples[:60]),
    checkpoints=Path(out, "states"),
)
rank = torch.distributed.get_rank()
weights = float(sum(value.double().abs().sum() for value in result.graph.state().values()))
Path(out, f"{rank}.json").write_text(json.dumps(
    {"processes": torch.distributed.get_world_size(), "steps": result.steps, "weights": weights,
     "losses": result.losses, "scores": [row["score"] for row in result.history]}
))
"""


@pytest.mark.slow
def test_two_processes_train_one_student(topic_files: Any, tmp_path: Path) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch is built without gloo, which processes on CPUs talk through")
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    # On CPUs accelerate's own launcher needs MPI for more than one process; torch's does not, and accelerate joins it.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(topic_files.student), str(topic_files.train), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == 2
    assert first["steps"] == 2 * 320 // 16 // 2  # each process takes half of the batches
    assert first["weights"] == second["weights"]
    assert first["scores"] == second["scores"]
    assert first["losses"] != second["losses"]
    assert [path.name for path in (tmp_path / "states").glob("step-*")] == ["step-20"]


def test_calibration_starts_every_static_grid(student: Student, examples: list[Example]) -> None:
    graph = TorchGraph(student, "w8a8-static")
    calibrate(graph, examples)
    started = [value for name, value in graph.state_dict().items() if name.endswith(".started")]
    assert started
    assert all(bool(value) for value in started)


def test_the_process_keeps_its_small_numbers(student: Student, examples: list[Example]) -> None:
    train(TorchGraph(student), examples[:8], replace(SETTINGS, epochs=1), evaluate=nothing)
    assert 2.0**-1074 > 0
    assert 2.0**-1074 * 3 / 2 > 0
    assert float(torch.tensor(1e-40) * 1.5) > 0
