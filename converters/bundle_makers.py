"""Which function makes the bundle of a task's students."""

from __future__ import annotations

from collections.abc import Callable

from ..sdk.bundle import Bundle
from .anatomy import Task
from .make_bundle import make_bundle
from .make_summarizer_bundle import make_summarizer_bundle
from .make_writer_bundle import make_writer_bundle


def bundle_maker_of(task: Task) -> Callable[..., Bundle]:
    """What makes the bundle of a task's students; all are called alike (:func:`~.make_bundle.make_bundle`).

    That of ``summarize`` takes ``summary_tokens`` too.
    """
    makers: dict[Task, Callable[..., Bundle]] = {"generate": make_writer_bundle, "summarize": make_summarizer_bundle}
    return makers.get(task, make_bundle)
