"""Shows how far a job is: on a terminal a bar with time left for each stage, elsewhere a line for each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from ...sdk.console import bar_of_parts, figure, note

if TYPE_CHECKING:
    from ..advance import Advance

LONG_SECONDS = 2.0
"""A stage that took less leaves no line on a terminal."""


class StageBars:
    """A context manager to be given as ``on_advance``."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._stage: str | None = None
        self._detail = ""
        self._began = 0.0
        self._bar = ExitStack()
        self._show: Callable[[float], None] = lambda _: None

    def __call__(self, advance: Advance) -> None:
        """Show where the job is."""
        if advance.stage != self._stage:
            self._end()
            self._stage, self._detail, self._began = advance.stage, "", time.monotonic()
            self._show = self._bar.enter_context(
                bar_of_parts(advance.stage.capitalize(), lambda: self._detail)
            )
        self._detail = advance.detail or self._detail
        self._show(advance.fraction)

    def __enter__(self) -> StageBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._end()
        else:
            self._bar.__exit__(kind, error, traceback)

    def _end(self) -> None:
        if self._stage is None:
            return
        self._bar.close()
        took = time.monotonic() - self._began
        if took >= LONG_SECONDS or not self._on_terminal:
            detail = f", {self._detail}" if self._detail else ""
            note(f"{self._stage}: {figure(took)} s{detail}")
        self._stage = None
