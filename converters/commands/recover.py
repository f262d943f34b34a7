"""``edgescribe recover``: a checkpoint trained from its teacher on the grid that it is exported on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...sdk.console import Result, command, figure, table, warn
from .options import (
    force_option,
    interruption,
    out_option,
    pickle_option,
    prefix_option,
    recipe_option,
    resume_option,
    student_argument,
    task_option,
    train_option,
    validation_option,
)
from .stage_bars import StageBars

if TYPE_CHECKING:
    from ..anatomy import Task


@command(epilog="Ctrl-C keeps the state of training, and --resume takes it up.")
@student_argument
@click.option("--teacher", required=True, help="Checkpoint to learn from, mostly the student before pruning.")
@task_option
@train_option
@validation_option
@recipe_option("Its training, precision and activation are taken.  [default: the gentlest for the task]")
@prefix_option
@out_option("the new checkpoint, with its grids")
@force_option
@resume_option
@pickle_option
def recover(
    student: str,
    teacher: str,
    task: Task,
    train: Path,
    validation: Path | None,
    recipe: str | None,
    prefix: str | None,
    out: Path,
    force: bool,
    resume: bool,
    allow_pickle: bool,
) -> Result:
    """Train STUDENT, mostly a pruned one, from its teacher and on the grid that it is exported on."""
    from ..recover_checkpoint import recover_checkpoint

    try:
        with StageBars() as bars:
            done = recover_checkpoint(
                student,
                teacher=teacher,
                task=task,
                train=train,
                validation=validation,
                recipe=recipe,
                prefix=prefix,
                out=out,
                force=force,
                resume=resume,
                allow_pickle=allow_pickle,
                on_advance=bars,
                warn=warn,
            )
    except KeyboardInterrupt as error:
        raise interruption(out) from error
    rows = [
        (curve.name, len(curve.losses), curve.losses[0], curve.losses[-1], f"{max(curve.scores):.4f}")
        for curve in done.training
    ]
    header = ("phase", "steps", "first loss", "last loss", "best validation")
    data = {"checkpoint": done.folder, "precision": done.precision, "training": done.training}
    taken = sum(curve.seconds for curve in done.training)
    text = table(rows, header) + "\n" if rows else ""
    return Result(data, f"{text}checkpoint: {done.folder} ({done.precision}, trained for {figure(taken)} s)")
