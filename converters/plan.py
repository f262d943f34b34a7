"""Choosing a recipe: the first on the ladder whose predicted figures fit every device's budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..device_profiles.budgets import Figure, Finding, check, over
from ..device_profiles.cost_model import predict
from ..device_profiles.schema import DeviceProfile
from ..errors import ProfileError
from .recipe import LADDER, Recipe
from .student import Student
from .workload import pruned_shape, workload

MIB = 1 << 20


@dataclass(frozen=True)
class Step:
    """One recipe's prediction on one device; ``findings`` against its budget, all estimated."""

    recipe: str
    device: str
    runtime: str
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
    """The recipe chosen, and what was predicted for it and for the gentler ones that were passed over.

    ``fits`` is false where even the harshest recipe is predicted over budget; it is then the one chosen.
    """

    recipe: Recipe
    steps: tuple[Step, ...]
    fits: bool


def make_plan(student: Student, devices: Sequence[DeviceProfile], recipes: Sequence[Recipe] = LADDER) -> Plan:
    """Walk the ladder and take the first recipe that fits all devices.

    Raises:
        ProfileError: a device grants the student's task no budget.
    """
    steps: list[Step] = []
    for recipe in recipes:
        tried = [_predicted(student, recipe, device) for device in devices]
        steps += tried
        if all(step.fits for step in tried):
            return Plan(recipe, tuple(steps), True)
    return Plan(recipes[-1], tuple(steps), False)


def _predicted(student: Student, recipe: Recipe, device: DeviceProfile) -> Step:
    budget = device.budgets.get(student.task)
    if budget is None:
        raise ProfileError(
            f"the profile {device.id!r} grants the task {student.task!r} no budget; "
            f"write [budgets.{student.task}] into a copy of it and give the copy's path"
        )
    pruning = recipe.pruning_of(student)
    shape = pruned_shape(student.shape, pruning.layers, pruning.neurons, pruning.heads)
    work = workload(shape, student.task, recipe.precision, min(budget.tokens, pruning.positions or student.max_tokens))
    preferred = next((each for each in device.runtimes if each.device == "cpu"), device.runtimes[0])
    predicted = predict(device, work, preferred.name, preferred.threads)
    figures = {
        "p90_ms": Figure(predicted.p90_ms, "estimated"),
        "peak_rss_mib": Figure(predicted.peak_rss_mib, "estimated"),
        "disk_mib": Figure(work.weight_bytes / MIB, "estimated"),
    }
    return Step(
        recipe.name,
        device.id,
        preferred.name,
        predicted.p90_ms,
        predicted.peak_rss_mib,
        work.weight_bytes / MIB,
        predicted.error_fraction,
        tuple(check(budget, figures)),
    )
