"""Choosing a recipe from what is predicted on each device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgescribe.converters.plan import make_plan, plan_conversion, preferred_runtime
from edgescribe.converters.recipe import LADDER
from edgescribe.converters.vocabulary import trim_vocabulary, trimmed_size
from edgescribe.converters.workload import pruned_shape, workload
from edgescribe.device_profiles.profiles import load_profile
from edgescribe.errors import ProfileError, UsageError
from msgspec.structs import replace

Student = Any


@pytest.fixture(scope="module")
def student(make_student: Callable[..., Student]) -> Student:
    return make_student(
        "bert", num_hidden_layers=12, hidden_size=48, num_attention_heads=12, intermediate_size=512
    )


def device(**limits: float) -> Any:
    profile = load_profile("raspberry-pi-5")
    return replace(profile, budgets={"classify": replace(profile.budgets["classify"], **limits)})


def test_predictions_fall_down_the_ladder(student: Student) -> None:
    steps = make_plan(student, [device()]).steps
    assert [step.recipe for step in steps] == [recipe.name for recipe in LADDER]
    for name in ("p90_ms", "peak_rss_mib", "disk_mib"):
        values = [getattr(step, name) for step in steps]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1] > 0
    assert all(finding.how == "estimated" for step in steps for finding in step.findings)


@pytest.mark.parametrize("place", range(len(LADDER)))
def test_the_gentlest_that_fits_is_chosen(place: int, student: Student) -> None:
    figures = [step.p90_ms for step in make_plan(student, [device()]).steps]
    plan = make_plan(student, [device(p90_ms=figures[place] * 1.0001)])
    assert plan.fits
    assert plan.recipe == LADDER[place]


def test_the_strictest_device_decides(student: Student) -> None:
    figures = [step.p90_ms for step in make_plan(student, [device()]).steps]
    plan = make_plan(student, [device(), device(p90_ms=figures[3] * 1.0001)])
    assert plan.recipe == LADDER[3]
    assert len(plan.steps) == 2 * len(LADDER)


def test_nothing_fits(student: Student) -> None:
    plan = make_plan(student, [device(p90_ms=1e-9)])
    assert not plan.fits
    assert plan.recipe == LADDER[-1]


def test_domain_texts_make_the_vocabulary_known(student: Student) -> None:
    texts = ["a small game of chess"] * 3
    trimmed = trim_vocabulary(student, texts)
    assert trimmed_size(student, texts) == trimmed.shape.vocabulary < student.shape.vocabulary
    whole, known = make_plan(student, [device()]), make_plan(student, [device()], texts=texts)
    assert known.steps[0].disk_mib < whole.steps[0].disk_mib


def test_sizes_after_pruning_are_those_of_the_pruned_student(student: Student, sentences: list[str]) -> None:
    from edgescribe.converters.prune import prune
    from edgescribe.converters.training_data import make_examples

    pruning = LADDER[-1].pruning_of(student)
    pruned = prune(student, pruning, make_examples(student, sentences, None), sentences)
    expected = pruned_shape(student.shape, pruning)
    for name in ("layers", "hidden", "heads", "neurons", "positions", "embedding"):
        assert getattr(expected, name) == getattr(pruned.shape, name), name


def test_work_counts_every_product(student: Student) -> None:
    shape = student.shape
    tag, classify = (workload(shape, task, "w8a8-static", 16) for task in ("tag", "classify"))
    assert classify.macs < tag.macs
    dense = 16 * shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.neurons)
    assert dense < tag.macs < 1.5 * dense
    assert workload(shape, "tag", "fp32", 16).weight_bytes == 4 * tag.weight_bytes


def test_the_runtime_is_the_devices_first_choice_among_those_asked_for() -> None:
    profile = load_profile("raspberry-pi-5")
    first, second = profile.runtimes[0].name, profile.runtimes[1].name
    assert preferred_runtime(profile, "w8a8-static", [second, first]).name == first
    assert preferred_runtime(profile, "w8a8-static", [second]).name == second
    with pytest.raises(ProfileError, match="runs litert"):
        preferred_runtime(load_profile("ethos-u"), "w8a8-static", ["openvino"])
    with pytest.raises(ProfileError, match="avoid w8a8-dynamic"):
        preferred_runtime(load_profile("ethos-u"), "w8a8-dynamic", ["litert"])


def test_reading_and_refusals(make_checkpoint: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = make_checkpoint("bert")
    assert plan_conversion(folder, task="classify", devices=["raspberry-pi-5"]).fits
    with pytest.raises(UsageError, match="at least one device"):
        plan_conversion(folder, task="classify", devices=[])
    with pytest.raises(ProfileError, match="grants the task 'embed' no budget"):
        make_plan(
            plan_student(folder), [replace(load_profile("raspberry-pi-5"), budgets={})]
        )


def plan_student(folder: Path) -> Student:
    from edgescribe.converters.read import read_student

    return read_student(folder, "embed")
