"""``edgescribe check``: whether a bundle keeps a device's budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import msgspec

from ..console import Result, bar_of_parts, command, figure, paint, table
from ..manifest import Precision, RuntimeName
from .choices import DeviceName, bundle_argument

if TYPE_CHECKING:
    from ..budget_check import BudgetReport

_OVER_BUDGET = 3
_COLOURS = {"met": "green", "over": "red", "unknown": "yellow"}


@command(epilog="Exit code 3 when a figure is over budget. A figure that was not measured there is called estimated.")
@bundle_argument
@click.option("--device", type=DeviceName(), default="host", show_default=True, help="Device profile: name or .toml.")
@click.option("--runtime", type=click.Choice(get_args(RuntimeName)), help="Check this engine's artifact.")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Check the artifact of this precision.")
@click.option("--samples", type=click.IntRange(1, 10**6), help="Least number of timed calls.  [default: 256]")
@click.option("--seconds", type=click.FloatRange(0, 86400), help="Least time to measure.  [default: 2]")
def check(
    bundle: Path,
    device: str,
    runtime: str | None,
    precision: str | None,
    samples: int | None,
    seconds: float | None,
) -> Result:
    """Tell whether BUNDLE keeps the budget that a device grants its task."""
    from ...device_profiles.profiles import load_profile
    from ..budget_check import check_budget
    from ..measure import QUICK

    effort = msgspec.structs.replace(
        QUICK,
        samples=QUICK.samples if samples is None else samples,
        seconds=QUICK.seconds if seconds is None else seconds,
    )
    profile = load_profile(device)
    with bar_of_parts("Measuring") as show:
        report = check_budget(
            bundle, profile, runtime=runtime, precision=precision, effort=effort, on_progress=show
        )
    return Result(data=_data(report), text=_text(report), exit_code=0 if report.met else _OVER_BUDGET)


def _data(report: BudgetReport) -> dict[str, object]:
    return {"met": report.met} | {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}


def _text(report: BudgetReport) -> str:
    head = (
        f"{report.device}, {report.task}: {report.runtime} {report.precision}, {report.threads} "
        f"thread{'s' if report.threads != 1 else ''}, {report.tokens} tokens"
    )
    rows = [
        (
            found.name,
            "not known" if found.value is None else f"{figure(found.value)} {found.unit}",
            f"{'at least' if found.key == 'tokens_per_s' else 'at most'} {found.granted:g}",
            found.how or "–",
            paint(found.verdict, _COLOURS[found.verdict]),
        )
        for found in report.findings
    ]
    lines = [head, table(rows, ("figure", "found", "granted", "how", "verdict")), report.basis]
    if report.error_fraction is not None:
        lines.append(f"The estimate may be off by {report.error_fraction:.0%}; only the device itself can tell.")
    return "\n".join(lines)
