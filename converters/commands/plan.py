"""``edgescribe plan``: which recipe of the ladder is predicted to fit, and what the others come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...sdk.console import Result, command, warn
from .options import device_option, pickle_option, runtime_option, student_argument, task_option
from .plan_table import plan_data, plan_text

if TYPE_CHECKING:
    from ..anatomy import Task

_OVER_BUDGET = 3


@command(epilog="Exit code 3 when no recipe is predicted to fit. Nothing is measured but host, if it is asked for.")
@student_argument
@task_option
@device_option
@runtime_option
@click.option(
    "--train", type=click.Path(path_type=Path), help="Texts of the domain, to know what the trimmed vocabulary takes."
)
@pickle_option
def plan(
    student: str,
    task: Task,
    devices: tuple[str, ...],
    runtimes: tuple[str, ...],
    train: Path | None,
    allow_pickle: bool,
) -> Result:
    """Choose a recipe for STUDENT, and show what each recipe is predicted to need on each device."""
    from ...runtimes.registry import RUNTIMES
    from ..conversion_data import read_texts
    from ..plan import plan_conversion

    texts = []
    if train is not None:
        read = read_texts(train, "summarize" if task == "summarize" else "embed", warn)
        texts = read.texts + read.summaries
    found = plan_conversion(
        student,
        task=task,
        devices=devices,
        runtimes=runtimes or RUNTIMES,
        texts=texts,
        allow_pickle=allow_pickle,
    )
    return Result(plan_data(found), plan_text(found), 0 if found.fits else _OVER_BUDGET)
