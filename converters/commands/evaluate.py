"""``edgescribe evaluate``: a checkpoint or a bundle scored on a data file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...sdk.console import Result, command, warn
from .options import (
    TASKS,
    effort_of,
    evaluation_option,
    pickle_option,
    runtime_option,
    samples_option,
    seconds_option,
)
from .stage_bars import StageBars
from .stage_table import stage_table

if TYPE_CHECKING:
    from ..anatomy import Task


@command(epilog="Each artifact is run and timed in a fresh process of its own engine; a checkpoint is run in torch.")
@click.argument("student_or_bundle")
@evaluation_option()
@click.option("--task", type=click.Choice(TASKS), help="What a checkpoint does.  [default: what it was made for]")
@click.option("--reference", help="For embed: the checkpoint whose embeddings are the measure.")
@runtime_option
@pickle_option
@samples_option
@seconds_option
def evaluate(
    student_or_bundle: str,
    evaluation: Path,
    task: Task | None,
    reference: str | None,
    runtimes: tuple[str, ...],
    allow_pickle: bool,
    samples: int | None,
    seconds: float | None,
) -> Result:
    """Score STUDENT_OR_BUNDLE, a checkpoint, hub id or bundle, on a data file."""
    from ..evaluate_saved import evaluate as run

    with StageBars() as bars:
        found = run(
            student_or_bundle,
            evaluation,
            task=task,
            reference=reference,
            runtimes=runtimes,
            allow_pickle=allow_pickle,
            effort=effort_of(samples, seconds),
            on_advance=bars,
            warn=warn,
        )
    lines = [f"{found.name}, {found.task}: {found.texts:,} texts", stage_table(found.stages)]
    lines += [
        f"{each.precision}: runtimes give {each.equal_predictions:.2%} equal answers, "
        f"metrics differ by {each.spread_points:.2f} points"
        for each in found.agreements
    ]
    data = {
        "name": found.name,
        "task": found.task,
        "texts": found.texts,
        "stages": found.stages,
        "agreements": found.agreements,
    }
    return Result(data, "\n".join(lines))
