"""Options that several commands of the workbench have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
import msgspec

from ...sdk.commands.choices import DeviceName
from ...sdk.manifest import RuntimeName

if TYPE_CHECKING:
    from ...sdk.measure import Effort

_F = TypeVar("_F", bound=Callable[..., Any])
Option = Callable[[_F], _F]
TASKS = ("classify", "tag", "embed", "generate", "summarize")
_PATH = click.Path(path_type=Path)

student_argument = click.argument("student")
task_option = click.option("--task", type=click.Choice(TASKS), required=True, help="What the student does.")
device_option = click.option(
    "--device",
    "devices",
    type=DeviceName(),
    multiple=True,
    required=True,
    help="Device profile to fit: a name, a .toml file, or host for this machine. May be repeated.",
)
train_option = click.option(
    "--train",
    type=_PATH,
    required=True,
    help="Texts to train on: .jsonl or .csv, .gz too, with text and label, tags or summary.",
)
validation_option = click.option(
    "--validation", type=_PATH, help="Texts that choose the best state in training.  [default: a tenth of --train]"
)
teacher_option = click.option("--teacher", help="Checkpoint to learn from.  [default: the student before pruning]")
runtime_option = click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(get_args(RuntimeName)),
    multiple=True,
    help="Engine to make an artifact for. May be repeated.  [default: all three]",
)
prefix_option = click.option(
    "--prefix", help="For summarize: what is put before every text.  [default: what the checkpoint names]"
)
pickle_option = click.option("--allow-pickle", is_flag=True, help="Take weights from pytorch_model.bin too.")
force_option = click.option("--force", is_flag=True, help="Replace what is there, interrupted work too.")
resume_option = click.option("--resume", is_flag=True, help="Take up what was interrupted.")
samples_option = click.option(
    "--samples", type=click.IntRange(1, 10**6), help="Least number of timed calls.  [default: 256]"
)
seconds_option = click.option(
    "--seconds", type=click.FloatRange(0, 86400), help="Least time to measure an artifact.  [default: 2]"
)


def out_option(what: str) -> Callable[[_F], _F]:
    """``--out``, the folder of ``what`` is written."""
    return click.option("--out", type=_PATH, required=True, help=f"Folder of {what}.")


def evaluation_option(required: bool = True) -> Callable[[_F], _F]:
    """``--eval``."""
    return click.option(
        "--eval", "evaluation", type=_PATH, required=required, help="Texts to evaluate on, used for nothing else."
    )


def recipe_option(text: str) -> Callable[[_F], _F]:
    """``--recipe``, a name of the ladder or a file; ``text`` tells what comes without it."""
    return click.option("--recipe", help=f"A recipe's name, or its .toml file.  {text}")


def effort_of(samples: int | None, seconds: float | None) -> Effort:
    """How long to time an artifact; what is not given as in other commands."""
    from ...sdk.measure import QUICK

    return msgspec.structs.replace(
        QUICK,
        samples=QUICK.samples if samples is None else samples,
        seconds=QUICK.seconds if seconds is None else seconds,
    )


def interruption(out: Path) -> KeyboardInterrupt:
    """What to raise when interrupted: tells what was kept."""
    folder = out.with_name(out.name + ".work")
    if not folder.is_dir():
        return KeyboardInterrupt("interrupted; nothing was written")
    return KeyboardInterrupt(
        f"interrupted; what was done is kept in {folder}, and the same command with --resume takes it up"
    )
