"""Which function recovers a task's students."""

from __future__ import annotations

from collections.abc import Callable

from .anatomy import Task
from .recover import Recovered, recover
from .recover_summarizer import recover_summarizer
from .recover_writer import recover_writer


def recovery_of(task: Task) -> Callable[..., Recovered]:
    """What recovers the students of a task; all are called alike (:func:`~.recover.recover`)."""
    recoveries: dict[Task, Callable[..., Recovered]] = {"generate": recover_writer, "summarize": recover_summarizer}
    return recoveries.get(task, recover)
