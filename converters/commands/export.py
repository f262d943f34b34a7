"""``edgescribe export``: a bundle from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...sdk.console import Result, command, table, warn
from .options import TASKS, force_option, out_option, prefix_option, runtime_option
from .stage_bars import StageBars

if TYPE_CHECKING:
    from ..anatomy import Task


@command(epilog="A recovered checkpoint keeps its precision, a plain one becomes float32. Nothing is evaluated.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    required=True,
    help="Texts of the kind it will meet (.jsonl or .csv); known answers are made from the first.",
)
@click.option("--task", type=click.Choice(TASKS), help="What it does.  [default: what it was made for]")
@runtime_option
@click.option("--max-tokens", type=click.IntRange(2), help="Longest input.  [default: all it reads]")
@click.option(
    "--summary-tokens", type=click.IntRange(4), help="For summarize: longest summary.  [default: the recipe's]"
)
@prefix_option
@out_option("the bundle")
@force_option
def export(
    checkpoint: Path,
    texts: Path,
    task: Task | None,
    runtimes: tuple[str, ...],
    max_tokens: int | None,
    summary_tokens: int | None,
    prefix: str | None,
    out: Path,
    force: bool,
) -> Result:
    """Write the artifacts of CHECKPOINT for the runtimes, as a bundle that edgescribe run takes."""
    from ...runtimes.registry import RUNTIMES
    from ..export_checkpoint import export_checkpoint

    with StageBars() as bars:
        bundle = export_checkpoint(
            checkpoint,
            out=out,
            texts=texts,
            task=task,
            runtimes=runtimes or RUNTIMES,
            max_tokens=max_tokens,
            summary_tokens=summary_tokens,
            prefix=prefix,
            force=force,
            on_advance=bars,
            warn=warn,
        )
    artifacts = [
        {
            "runtime": each.runtime,
            "precision": each.precision,
            "mib": bundle.artifact_mib(each),
            "file": each.files[0].path,
        }
        for each in bundle.manifest.artifacts
    ]
    rows = [tuple(each.values()) for each in artifacts]
    text = f"{table(rows, ('runtime', 'precision', 'MiB with tokenizer', 'file'))}\nbundle: {bundle.folder}"
    return Result({"bundle": bundle.folder, "artifacts": artifacts}, text)
