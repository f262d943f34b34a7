"""Whole conversions of a tiny student, and what becomes of them when something comes between."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgescribe
import pytest
from edgescribe import convert, evaluate
from edgescribe.converters.advance import Advance
from edgescribe.converters.conversion_request import read_request
from edgescribe.converters.cost import estimate_cost
from edgescribe.converters.recipe import LADDER, Recipe, Shares, read_recipe
from edgescribe.converters.training import TrainingSettings
from edgescribe.errors import DataError, EngineError, InputError, OutputError, ProfileError, RecipeError, UsageError
from edgescribe.sdk.bundle import read_bundle
from edgescribe.sdk.measure import Effort

BRIEF = Effort(samples=4, seconds=0.0, warmup=1)
SHORT = Recipe("short", training=TrainingSettings(epochs=1, learning_rate=1e-3))


@pytest.fixture
def arguments(topic_files: Any, easy_profile: Path, tmp_path: Path) -> dict[str, Any]:
    return {**topic_files.arguments(), "devices": [easy_profile], "out": tmp_path / "bundle", "effort": BRIEF}


@pytest.mark.slow
def test_a_whole_conversion(arguments: dict[str, Any], topic_files: Any, tmp_path: Path) -> None:
    seen: list[Advance] = []
    done = convert(**arguments, on_advance=seen.append)
    assert done.within_budget
    assert done.plan is not None
    assert done.plan.recipe == LADDER[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.report"]
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.manifest == done.bundle.manifest
    assert bundle.folder == done.bundle.folder
    assert [each.runtime for each in bundle.manifest.artifacts] == ["onnxruntime", "openvino", "litert"]
    assert set(bundle.manifest.provenance.data_sha256) == {"train", "validation", "evaluation"}
    quality = bundle.manifest.quality
    assert set(quality) == {"student", *(f"{name}/w8a8-static" for name in ("onnxruntime", "openvino", "litert"))}
    for name, values in quality.items():
        assert values["accuracy"] >= quality["student"]["accuracy"] - 0.05, name
    assert len(bundle.manifest.measurements) == 3
    report = json.loads((done.report_folder / "report.json").read_text())
    assert report["rows"] == {"train": 320, "validation": 60, "evaluation": 90}
    assert [curve["name"] for curve in report["training"]] == ["grid"]
    assert "<html" in (done.report_folder / "report.html").read_text()
    stages = list(dict.fromkeys(each.stage for each in seen))
    for stage in ("reading", "pruning", "training on the grid", "exporting", "evaluating on litert", "reporting"):
        assert stage in stages
    for stage in stages:
        parts = [each.fraction for each in seen if each.stage == stage]
        assert parts == sorted(parts), stage
    with edgescribe.load(tmp_path / "bundle") as student:
        assert student.classify("a chess puzzle with the rook").label == "games"
    found = evaluate(tmp_path / "bundle", topic_files.evaluation, effort=BRIEF, runtimes=["litert"])
    assert found.stages[0].metrics is not None
    assert found.stages[0].metrics.values()["accuracy"] == pytest.approx(quality["litert/w8a8-static"]["accuracy"])


@pytest.mark.slow
def test_over_budget_is_told_and_the_bundle_written_all_the_same(
    arguments: dict[str, Any], tight_profile: Path, easy_profile: Path
) -> None:
    arguments |= {"devices": [easy_profile, tight_profile], "runtimes": ["onnxruntime"]}
    done = convert(**arguments)
    assert done.plan is not None
    assert not done.plan.fits
    assert done.report.recipe["name"] == LADDER[-1].name
    assert not done.within_budget
    assert all(line.startswith("tight: ") for line in done.over_budget)
    assert any("p90 latency" in line for line in done.over_budget)
    assert any("memory" in line for line in done.over_budget)
    assert read_bundle(arguments["out"]).manifest.task == "classify"
    assert any("No recipe was predicted to fit" in note for note in done.report.notes)


class Stop(Exception):
    """What a test stops a conversion with."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["training on the grid", "exporting", "evaluating on onnxruntime", "reporting"])
def test_a_conversion_stopped_anywhere_is_taken_up(stage: str, arguments: dict[str, Any]) -> None:
    def stop(advance: Advance) -> None:
        if advance.stage == stage:
            raise Stop

    arguments |= {"runtimes": ["onnxruntime"], "recipe": SHORT}
    with pytest.raises(Stop):
        convert(**arguments, on_advance=stop)
    out: Path = arguments["out"]
    assert not out.exists()
    with pytest.raises(OutputError, match="--resume"):
        convert(**arguments)
    seen: list[str] = []
    # The recipe need not be named again.
    done = convert(**arguments | {"recipe": None}, resume=True, on_advance=lambda each: seen.append(each.stage))
    assert done.report.recipe["name"] == "short"
    assert "pruning" not in seen
    assert ("training on the grid" in seen) == (stage == "training on the grid")
    assert [curve.name for curve in done.report.training] == ["grid"]
    assert len(done.report.training[0].losses) == 10
    assert sorted(path.name for path in out.parent.iterdir()) == ["bundle", "bundle.report"]


@pytest.mark.slow
def test_an_existing_bundle_is_replaced_only_with_force(arguments: dict[str, Any]) -> None:
    arguments |= {"runtimes": ["onnxruntime"], "recipe": "round"}
    first = convert(**arguments).bundle.manifest
    with pytest.raises(OutputError, match="exists already"):
        convert(**arguments)
    second = convert(**arguments | {"recipe": "float"}, force=True).bundle.manifest
    assert (first.artifacts[0].precision, second.artifacts[0].precision) == ("w8a8-static", "fp32")
    assert read_bundle(arguments["out"]).manifest == second


@pytest.mark.slow
def test_another_teacher_and_embeddings(
    arguments: dict[str, Any], make_checkpoint: Callable[..., tuple[Path, Any]]
) -> None:
    student, _ = make_checkpoint("bert", "embed")
    teacher, _ = make_checkpoint("bert", "embed", seed=1)
    arguments |= {"student": student, "teacher": teacher, "task": "embed", "runtimes": ["onnxruntime"]}
    done = convert(**arguments | {"recipe": SHORT})
    assert [stage.name for stage in done.report.stages] == ["teacher", "student", "onnxruntime/w8a8-static"]
    scores = {stage.name: stage.metrics.values()["cosine"] for stage in done.report.stages if stage.metrics}
    assert scores["teacher"] == pytest.approx(1.0, abs=1e-5)
    assert scores["onnxruntime/w8a8-static"] > scores["student"] + 0.1  # it has learnt from the teacher


def test_what_can_be_refused_is_refused_before_anything_is_written(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kind: type[Exception], match: str, **changes: Any) -> None:
        with pytest.raises(kind, match=match):
            convert(**arguments | changes)

    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"text": "a", "label": "cooking"}\n')
    poor = tmp_path / "poor.toml"
    text = Path(arguments["devices"][0]).read_text()
    poor.write_text(re.sub(r"(?ms)^\[budgets\.classify\].*?(?=^\[)", "", text))
    refused(InputError, "no folder", student=tmp_path / "nobody")
    refused(DataError, "cooking", evaluation=labels)
    refused(DataError, "cooking", train=labels)
    refused(DataError, "nowhere", train=tmp_path / "nowhere.jsonl")
    refused(RecipeError, "did you mean", recipe="hars")
    refused(ProfileError, "abacus", devices=["abacus"])
    refused(ProfileError, "runs litert", devices=["ethos-u"], runtimes=["openvino"], recipe="round")
    refused(ProfileError, "no budget", devices=[poor], recipe="round")
    refused(UsageError, "at least one device", devices=[])
    refused(UsageError, "tvm", runtimes=["tvm"])
    refused(UsageError, "twice", runtimes=["litert", "litert"])
    refused(OutputError, "is not a bundle", out=tmp_path, force=True)
    refused(InputError, "nothing to resume", resume=True)
    monkeypatch.setitem(sys.modules, "openvino", None)
    refused(EngineError, "openvino", runtimes=["openvino"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.jsonl", "poor.toml"]


def test_a_full_disk_leaves_nothing_half_written(arguments: dict[str, Any]) -> None:
    out: Path = arguments["out"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 20_000, 150_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OutputError, match=r"was not written|cannot be written"):
                convert(**arguments | {"recipe": SHORT, "runtimes": ["onnxruntime"]}, force=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not out.exists()
    with pytest.raises(OutputError):
        convert(**arguments | {"out": arguments["student"] / "config.json" / "bundle"})


def test_the_cost_of_a_dry_run(arguments: dict[str, Any], tmp_path: Path) -> None:
    effort, out = arguments.pop("effort"), arguments.pop("out")
    recipe = replace(SHORT, keep=Shares(neurons=0.5), training=replace(SHORT.training, epochs=3))
    request = read_request(**arguments, recipe=recipe)
    cost = estimate_cost(request, effort)
    assert cost.updates == {"recovering in float": 10, "training on the grid": 30}
    assert cost.seconds["training on the grid"] > 0
    assert cost.total_seconds >= sum(cost.seconds[name] for name in cost.updates)
    longer = estimate_cost(replace(request, recipe=replace(recipe, training=replace(recipe.training, epochs=30))))
    assert longer.updates["training on the grid"] == 300
    assert longer.total_seconds > cost.total_seconds
    assert cost.parameters[0] > cost.parameters[1] > 0
    assert 50 < cost.peak_rss_mib < 20_000
    assert 0 < cost.bundle_mib < cost.work_mib
    assert list(tmp_path.iterdir()) == []
    assert not out.exists()


@pytest.fixture
def slow_recipe(tmp_path: Path) -> Path:
    """Enough training to be interrupted in, with a state after every step."""
    path = tmp_path / "slow.toml"
    path.write_text("[training]\nepochs = 12\nlearning_rate = 1e-3\ncheckpoint_seconds = 0.0\n")
    assert read_recipe(path).training.epochs == 12
    return path


@pytest.fixture
def command(topic_files: Any, easy_profile: Path, slow_recipe: Path, tmp_path: Path) -> list[str]:
    return [
        sys.executable, "-P", "-m", "edgescribe", "convert", str(topic_files.student), "--task", "classify",
        "--device", str(easy_profile), "--train", str(topic_files.train), "--eval", str(topic_files.evaluation),
        "--out", str(tmp_path / "bundle"), "--runtime", "onnxruntime", "--samples", "4", "--seconds", "0", "--json",
    ]  # fmt: skip


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if condition():
            return
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        time.sleep(0.05)
    process.kill()
    raise AssertionError("it never came")


def running(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
def test_ctrl_c_in_training_and_going_on(
    command: list[str], slow_recipe: Path, tmp_path: Path, ended: list[subprocess.Popen[str]]
) -> None:
    states = tmp_path / "bundle.work" / "training" / "grid"
    process = running([*command, "--recipe", str(slow_recipe)])
    ended.append(process)
    wait_for(lambda: any(states.glob("step-*")), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["exit_code"] == 130
    assert "--resume takes it up" in err
    assert "Traceback" not in err
    (state,) = states.glob("step-*")
    assert int(state.name.removeprefix("step-")) < 12 * 9
    assert not (tmp_path / "bundle").exists()

    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 4
    assert "--resume" in json.loads(again.stdout)["error"]["message"]
    going_on = running([*command, "--resume"])
    ended.append(going_on)
    out, err = going_on.communicate(timeout=300)
    assert going_on.returncode == 0, err
    found = json.loads(out)
    assert found["recipe"]["name"] == "slow"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.report", "slow.toml"]
    report = json.loads((tmp_path / "bundle.report" / "report.json").read_text())
    (curve,) = report["training"]
    assert len(curve["losses"]) == 12 * 9
    assert read_bundle(tmp_path / "bundle").manifest.quality["onnxruntime/w8a8-static"]["accuracy"] > 0.5
