"""``edgescribe prune``: heads, neurons, layers, width, positions or vocabulary taken out of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...sdk.console import Result, command, table, warn
from .options import (
    force_option,
    out_option,
    pickle_option,
    recipe_option,
    student_argument,
    task_option,
    train_option,
)
from .stage_bars import StageBars

if TYPE_CHECKING:
    from ..anatomy import Task

_SIZE = click.IntRange(1)
_SHOWN = ("layers", "decoder_layers", "hidden", "heads", "neurons", "decoder_neurons", "positions", "vocabulary")


@command(epilog="Follow it with edgescribe recover: what is pruned alone answers worse.")
@student_argument
@task_option
@train_option
@recipe_option("Takes the place of the sizes below.")
@click.option("--layers", type=_SIZE, help="Layers to keep; of an encoder-decoder the encoder's.")
@click.option("--decoder-layers", type=_SIZE, help="Layers of an encoder-decoder's decoder.")
@click.option("--neurons", type=_SIZE, help="Neurons of each feed-forward block.")
@click.option("--decoder-neurons", type=_SIZE, help="Of the decoder's blocks (BART and Marian alone).")
@click.option("--heads", type=_SIZE, help="Attention heads of each layer; the hidden width follows.")
@click.option("--hidden", type=_SIZE, help="Hidden width; the heads follow.")
@click.option("--positions", type=_SIZE, help="Longest input in tokens.")
@click.option("--vocabulary", type=click.IntRange(0), help="Most tokens to keep; 0 keeps all that --train uses.")
@click.option("--drop-sentinels", is_flag=True, help="With --vocabulary: T5's <extra_id_...> tokens leave too.")
@out_option("the new checkpoint")
@force_option
@pickle_option
def prune(
    student: str,
    task: Task,
    train: Path,
    recipe: str | None,
    out: Path,
    force: bool,
    allow_pickle: bool,
    drop_sentinels: bool,
    **sizes: int | None,
) -> Result:
    """Take units or tokens out of STUDENT for good; those that matter least go first."""
    given = {name: size for name, size in sizes.items() if size is not None}
    if recipe is not None and (given or drop_sentinels):
        name = next(iter(given), "drop_sentinels").replace("_", "-")
        raise click.UsageError(f"--recipe and --{name} exclude each other")
    names = (name.replace("_", "-") for name in sizes)
    if recipe is None and not given:
        raise click.UsageError("say what to prune: --recipe, or at least one of --" + ", --".join(names))
    from ..prune import Pruning
    from ..prune_checkpoint import prune_checkpoint

    with StageBars() as bars:
        done = prune_checkpoint(
            student,
            task=task,
            train=train,
            out=out,
            recipe=recipe,
            pruning=Pruning(**given, sentinels=not drop_sentinels) if recipe is None else None,
            allow_pickle=allow_pickle,
            force=force,
            on_advance=bars,
            warn=warn,
        )
    before, after = asdict(done.before), asdict(done.after)
    rows = [(name, before[name], after[name]) for name in _SHOWN if before[name]]
    rows.append(("weights", done.parameters_before, done.parameters_after))
    data = {"checkpoint": done.folder, "before": before, "after": after}
    data |= {"parameters_before": done.parameters_before, "parameters_after": done.parameters_after}
    return Result(data, f"{table(rows, ('', 'before', 'after'))}\ncheckpoint: {done.folder}")
