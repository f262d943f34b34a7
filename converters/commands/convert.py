"""``edgescribe convert``: a student from checkpoint to a bundle that fits its devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...sdk.console import Result, command, figure, paint, table, warn
from .options import (
    device_option,
    effort_of,
    evaluation_option,
    force_option,
    interruption,
    out_option,
    pickle_option,
    prefix_option,
    recipe_option,
    resume_option,
    runtime_option,
    samples_option,
    seconds_option,
    student_argument,
    task_option,
    teacher_option,
    train_option,
    validation_option,
)
from .plan_table import plan_data, plan_text
from .stage_bars import StageBars
from .stage_table import stage_table

if TYPE_CHECKING:
    from ...sdk.measure import Effort
    from ..convert import Conversion

_OVER_BUDGET = 3
_DEFAULT_RECIPE = "[default: the first of the ladder that is predicted to fit]"


@command(
    epilog="Exit code 3 when a figure is over budget; the bundle is written all the same. Ctrl-C keeps what was done, "
    "and --resume takes it up."
)
@student_argument
@task_option
@device_option
@train_option
@evaluation_option()
@validation_option
@teacher_option
@recipe_option(_DEFAULT_RECIPE)
@runtime_option
@prefix_option
@out_option("the bundle; the report goes to OUT.report")
@force_option
@resume_option
@click.option("--dry-run", is_flag=True, help="Print the plan and what it will cost; write nothing.")
@pickle_option
@samples_option
@seconds_option
def convert(
    student: str,
    out: Path,
    force: bool,
    resume: bool,
    dry_run: bool,
    samples: int | None,
    seconds: float | None,
    runtimes: tuple[str, ...],
    **options: Any,
) -> Result:
    """Take STUDENT, a checkpoint folder or hub id, to a bundle that fits a device's budget."""
    from ...runtimes.registry import RUNTIMES

    effort = effort_of(samples, seconds)
    options |= {"runtimes": runtimes or RUNTIMES}
    if dry_run:
        if resume:
            raise click.UsageError("--dry-run and --resume exclude each other")
        return _dry_run(student, out, force, effort, options)
    from ..convert import convert as run

    try:
        with StageBars() as bars:
            done = run(
                student, out=out, force=force, resume=resume, effort=effort, on_advance=bars, warn=warn, **options
            )
    except KeyboardInterrupt as error:
        raise interruption(out) from error
    return Result(_data(done), _text(done), 0 if done.within_budget else _OVER_BUDGET)


def _data(done: Conversion) -> dict[str, Any]:
    return {
        "bundle": done.bundle.folder,
        "report": done.report_folder / "report.html",
        "within_budget": done.within_budget,
        "over_budget": done.over_budget,
        "recipe": done.report.recipe,
        "plan": None if done.plan is None else plan_data(done.plan),
        "stages": done.report.stages,
        "verdicts": done.report.verdicts,
        "agreements": done.report.agreements,
        "seconds": done.report.seconds,
    }


def _text(done: Conversion) -> str:
    parts = [f"recipe {done.report.recipe['name']}", stage_table(done.report.stages)]
    lines = []
    for verdict in done.report.verdicts:
        word, colour = ("met", "green") if verdict.met else ("over", "red")
        lines.append(f"{verdict.device}: budget {paint(word, colour)} on {verdict.runtime}; {verdict.basis}")
    lines += [f"over budget: {line}" for line in done.over_budget]
    lines += done.report.notes
    parts.append("\n".join(lines))
    parts.append(
        f"bundle: {done.bundle.folder} ({figure(done.bundle.disk_mib)} MiB)\n"
        f"report: {done.report_folder / 'report.html'}"
    )
    return "\n\n".join(parts)


def _dry_run(student: str, out: Path, force: bool, effort: Effort, options: dict[str, Any]) -> Result:
    from ...sdk.bundle_writer import check_output
    from ..conversion_request import read_request
    from ..cost import estimate_cost
    from ..stages import check_stages

    check_output(out, force)
    check_stages(out, False, force)
    request = read_request(student, warn=warn, **options)
    with StageBars() as bars:
        cost = estimate_cost(request, effort, bars)
    parts = []
    if request.plan is not None:
        parts.append(plan_text(request.plan))
    else:
        parts.append(f"recipe {request.recipe.name}, as given")
    before, after = cost.parameters
    rows = [(name, f"{figure(taken)} s") for name, taken in cost.seconds.items()]
    rows.append(("all in all", f"{figure(cost.total_seconds)} s"))
    steps = ", ".join(f"{count:,} steps of {name}" for name, count in cost.updates.items()) or "no training"
    parts.append(table(rows))
    parts.append(
        f"{before:,} weights become {after:,}; {steps}\n"
        f"memory {figure(cost.peak_rss_mib)} MiB; disk {figure(cost.work_mib)} MiB on the way, "
        f"{figure(cost.bundle_mib)} MiB for the bundle\n"
        "An estimate: two training steps were timed on this machine, all else is counted. Nothing was written."
    )
    data = {
        "recipe": request.recipe.as_dict(),
        "plan": None if request.plan is None else plan_data(request.plan),
        "estimated": True,
        "total_seconds": cost.total_seconds,
        "seconds": cost.seconds,
        "updates": cost.updates,
        "peak_rss_mib": cost.peak_rss_mib,
        "work_mib": cost.work_mib,
        "bundle_mib": cost.bundle_mib,
        "parameters_before": before,
        "parameters_after": after,
    }
    return Result(data, "\n\n".join(parts))
