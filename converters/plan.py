"""Choosing a recipe: the first on the ladder whose predicted figures fit every device's budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..device_profiles.budgets import Figure, Finding, check, over
from ..device_profiles.cost_model import P90_OVER_TYPICAL, predict
from ..device_profiles.profiles import load_profile
from ..device_profiles.schema import Budget, DeviceProfile, RuntimePreference
from ..errors import ProfileError, UsageError
from ..runtimes.registry import RUNTIMES
from ..sdk.load import avoided
from .anatomy import Shape, Task
from .read import read_student
from .recipe import Recipe, ladder_of
from .student import Student
from .vocabulary import trimmed_size
from .workload import (
    WRITTEN_TOKENS,
    decode_workload,
    prefill_workload,
    pruned_shape,
    read_workload,
    summarize_workload,
    workload,
)

MIB = 1 << 20


@dataclass(frozen=True)
class Step:
    """One recipe's prediction on one device; ``findings`` against its budget, all estimated.

    ``p90_ms``: of one call at batch 1 and the budget's tokens (of a writer or summariser, a decode step behind them);
    ``peak_rss_mib``: of the process; ``disk_mib``: the artifact with its tokenizer; ``error_fraction``: how far off the
    first two may be (0.5: by half).
    """

    recipe: str
    device: str
    runtime: str
    threads: int
    tokens: int
    p90_ms: float
    peak_rss_mib: float
    disk_mib: float
    error_fraction: float
    findings: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        """Whether no predicted figure is over budget."""
        return not over(self.findings)


@dataclass(frozen=True)
class Plan:
    """The recipe chosen, and what was predicted for it and the others of the ladder, gentlest first.

    ``fits`` is false where even the harshest recipe is predicted over budget; it is then the one chosen.
    """

    recipe: Recipe
    steps: tuple[Step, ...]
    fits: bool


def plan_conversion(
    student: str | Path,
    *,
    task: Task,
    devices: Sequence[str | Path],
    recipes: Sequence[Recipe] | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    texts: Sequence[str] = (),
    allow_pickle: bool = False,
) -> Plan:
    """Read a student and predict what each recipe makes of it on each device.

    Args:
        student: checkpoint folder or hub id.
        devices: profiles by name, ``host`` (this machine) or path; the recipe is to fit them all.
        recipes: gentlest first; the task's ladder unless given.
        runtimes: those that there will be artifacts for.
        texts: of the domain. With them the trimmed vocabulary's size is known; without, the whole is counted.

    Raises:
        StudentError: the student cannot be used.
        ProfileError: a profile is unknown, or grants the task no budget.
        UsageError: no device.
    """
    if not devices:
        raise UsageError("name at least one device profile (edgescribe devices list)")
    profiles = tuple(load_profile(device) for device in devices)
    read = read_student(student, task, allow_pickle=allow_pickle)
    return make_plan(read, profiles, recipes, runtimes=runtimes, texts=texts)


def make_plan(
    student: Student,
    devices: Sequence[DeviceProfile],
    recipes: Sequence[Recipe] | None = None,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    texts: Sequence[str] = (),
) -> Plan:
    """As :func:`plan_conversion`, for what was read already."""
    recipes = ladder_of(student.task) if recipes is None else recipes
    trimmed = trimmed_size(student, texts) if texts else student.shape.vocabulary
    steps: list[Step] = []
    chosen: Recipe | None = None
    for recipe in recipes:
        tried = [_predicted(student, recipe, device, runtimes, trimmed) for device in devices]
        steps += tried
        if chosen is None and all(step.fits for step in tried):
            chosen = recipe
    return Plan(chosen or recipes[-1], tuple(steps), chosen is not None)


def budget_of(device: DeviceProfile, task: Task) -> Budget:
    """What a device grants a task.

    Raises:
        ProfileError: nothing.
    """
    budget = device.budgets.get(task)
    if budget is None:
        raise ProfileError(
            f"the profile {device.id!r} grants the task {task!r} no budget; "
            f"write [budgets.{task}] into a copy of it and give the copy's path"
        )
    return budget


def preferred_runtime(device: DeviceProfile, precision: str, runtimes: Sequence[str]) -> RuntimePreference:
    """The runtime that a device runs an artifact of this precision on, by its CPU.

    Raises:
        ProfileError: the device runs none of them, or is to avoid this precision on all.
    """
    mine = [each for each in device.runtimes if each.device == "cpu" and each.name in runtimes]
    if not mine:
        there = ", ".join(dict.fromkeys(each.name for each in device.runtimes))
        raise ProfileError(
            f"the device {device.id!r} runs {there}, and artifacts are asked for {', '.join(runtimes)}; add one of its"
        )
    for preference in mine:
        if avoided(precision, preference) is None:
            return preference
    raise ProfileError(
        f"the profile {device.id!r} says to avoid {precision}: {avoided(precision, mine[0])}; "
        "choose a recipe of another precision"
    )


def _predicted(
    student: Student, recipe: Recipe, device: DeviceProfile, runtimes: Sequence[str], trimmed: int
) -> Step:
    budget = budget_of(device, student.task)
    pruning = recipe.pruning_of(student)
    if pruning.vocabulary == 0:
        pruning = replace(pruning, vocabulary=trimmed)
    shape = pruned_shape(student.shape, pruning)
    tokens = min(budget.tokens, pruning.positions or student.max_tokens)
    preferred = preferred_runtime(device, recipe.precision, runtimes)
    if student.task == "summarize":
        return _predicted_summarizer(student, recipe, device, budget, preferred, shape, tokens)
    figures: dict[str, Figure] = {}
    if student.task == "generate":
        work = decode_workload(shape, recipe.precision, tokens)
        prefill = predict(device, prefill_workload(shape, recipe.precision, tokens), preferred.name, preferred.threads)
        figures["ttft_ms"] = Figure(prefill.p90_ms, "estimated")
    else:
        work = workload(shape, student.task, recipe.precision, tokens)
    predicted = predict(device, work, preferred.name, preferred.threads)
    if student.task == "generate":
        figures["tokens_per_s"] = Figure(1000 * P90_OVER_TYPICAL / predicted.p90_ms, "estimated")
    disk_mib = (work.weight_bytes + _tokenizer_bytes(student, shape)) / MIB
    figures |= {
        "p90_ms": Figure(predicted.p90_ms, "estimated"),
        "peak_rss_mib": Figure(predicted.peak_rss_mib, "estimated"),
        "disk_mib": Figure(disk_mib, "estimated"),
    }
    return Step(
        recipe=recipe.name,
        device=device.id,
        runtime=preferred.name,
        threads=preferred.threads,
        tokens=tokens,
        p90_ms=predicted.p90_ms,
        peak_rss_mib=predicted.peak_rss_mib,
        disk_mib=disk_mib,
        error_fraction=predicted.error_fraction,
        findings=tuple(check(budget, figures)),
    )


def _predicted_summarizer(
    student: Student,
    recipe: Recipe,
    device: DeviceProfile,
    budget: Budget,
    preferred: RuntimePreference,
    shape: Shape,
    tokens: int,
) -> Step:
    """A decode step behind a source of ``tokens`` tokens, and the way from that source to the first token."""
    whole = read_workload(shape, recipe.precision, tokens)
    step = summarize_workload(shape, recipe.precision, tokens, WRITTEN_TOKENS)
    reading, writing = (predict(device, work, preferred.name, preferred.threads) for work in (whole, step))
    token_ms = (reading.p90_ms + (WRITTEN_TOKENS - 1) * writing.p90_ms) / WRITTEN_TOKENS / P90_OVER_TYPICAL
    disk_mib = (whole.weight_bytes + _tokenizer_bytes(student, shape)) / MIB
    figures = {
        "ttft_ms": Figure(reading.p90_ms, "estimated"),
        "tokens_per_s": Figure(1000 / token_ms, "estimated"),
        "p90_ms": Figure(writing.p90_ms, "estimated"),
        "peak_rss_mib": Figure(reading.peak_rss_mib, "estimated"),
        "disk_mib": Figure(disk_mib, "estimated"),
    }
    return Step(
        recipe=recipe.name,
        device=device.id,
        runtime=preferred.name,
        threads=preferred.threads,
        tokens=tokens,
        p90_ms=writing.p90_ms,
        peak_rss_mib=reading.peak_rss_mib,
        disk_mib=disk_mib,
        error_fraction=reading.error_fraction,
        findings=tuple(check(budget, figures)),
    )


def _tokenizer_bytes(student: Student, shape: Shape) -> float:
    return len(student.tokenizer.to_str()) * shape.vocabulary / student.shape.vocabulary
