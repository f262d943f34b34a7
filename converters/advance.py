"""How far a long job of the workbench is, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Advance:
    """Where a job is: the stage in words, the part of it that is done (0 to 1), and what is worth saying of it."""

    stage: str
    fraction: float
    detail: str = ""


OnAdvance = Callable[[Advance], None]


def unwatched(_: Advance) -> None:
    """For a job that nobody watches."""


def part_of(on_advance: OnAdvance, stage: str) -> Callable[[float], None]:
    """What takes the part of one stage that is done."""
    return lambda fraction: on_advance(Advance(stage, fraction))
