"""The stage ``export`` alone: a bundle from a checkpoint, on the grids that it was recovered with or in float32."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from ..runtimes.registry import RUNTIMES
from ..sdk.bundle import Bundle
from ..sdk.bundle_writer import check_output
from ..sdk.labelled_text import read_rows
from .advance import Advance, OnAdvance, unwatched
from .anatomy import Task
from .bundle_makers import bundle_maker_of
from .checkpoint import load_graph, read_record
from .conversion_request import check_runtimes
from .recipe import FLOAT
from .summary_data import SUMMARY_TOKENS, with_prefix

ANSWERED_TEXTS = 64
"""Rows that known answers are chosen from."""


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    texts: str | os.PathLike[str],
    task: Task | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    max_tokens: int | None = None,
    summary_tokens: int | None = None,
    prefix: str | None = None,
    force: bool = False,
    on_advance: OnAdvance = unwatched,
    warn: Callable[[str], None] | None = None,
) -> Bundle:
    """Write a bundle with an artifact for each runtime. Nothing in it is evaluated or measured.

    Args:
        checkpoint: folder of a recovered checkpoint (its precision is kept), or of a plain one (float32).
        out: the bundle's folder.
        texts: data file with texts of the kind that the student will meet; known answers are made from its first.
        task: what the checkpoint does; what it was made for unless given.
        max_tokens: longest input; all that the student reads unless given.
        summary_tokens: of a summariser, the most tokens of a summary; the recipe's unless given.
        prefix: of a summariser, what is put before every text; what the checkpoint names unless given.
        force: replace a bundle at ``out``.

    Raises:
        InputError: a checkpoint or data that cannot be used, or an ``out`` that cannot be written.
        EngineError: an engine is missing, or does not compute what torch does.
        UsageError: ``summary_tokens`` or ``prefix`` for a student that does not summarise.
    """
    check_output(out, force)
    check_runtimes(runtimes)
    folder = Path(checkpoint)
    on_advance(Advance("reading", 0.0))
    graph = load_graph(folder, task)
    source = graph.student
    graph.student = source.with_state(graph.state())
    if source.task == "summarize":
        graph.student = with_prefix(graph.student, prefix)
    elif summary_tokens is not None or prefix is not None:
        raise UsageError(f"summary tokens and a prefix are for summarisers; {folder} is made to {source.task}")
    rows = [row.text for row in islice(read_rows(Path(texts), ("text",)), ANSWERED_TEXTS)]
    if not rows:
        raise DataError(f"{texts} holds no texts; known answers are made from real ones")
    record = read_record(folder)
    recipe = record.get("recipe")
    if not isinstance(recipe, dict):
        recipe = FLOAT.as_dict()
    options: dict[str, Any] = {}
    if source.task == "summarize":
        options["summary_tokens"] = summary_tokens or int(recipe.get("summary_tokens", SUMMARY_TOKENS))
    if source.task == "generate" and recipe.get("int8_cache"):
        options["cache_texts"] = rows
    on_advance(Advance("reading", 1.0))
    done = 0

    def artifact(name: str) -> None:
        nonlocal done
        on_advance(Advance("exporting", done / len(runtimes), name))
        done += 1

    bundle = bundle_maker_of(source.task)(
        graph.student,
        {graph.precision: graph},
        runtimes,
        out,
        texts=rows,
        source=source,
        recipe=recipe,
        seed=int(recipe.get("training", {}).get("seed", 0)),
        data_sha256={},
        max_tokens=max_tokens,
        force=force,
        on_artifact=artifact,
        **options,
    )
    on_advance(Advance("exporting", 1.0))
    return bundle
