"""Sequence-level distillation: the teacher writes summaries of training texts, and the student learns those.

Kim and Rush, "Sequence-Level Knowledge Distillation" (2016). What a small student cannot write as people do, it can
write as its teacher does; a share of the training texts keep their true summaries, so that it does not learn its
teacher's mistakes alone. Which texts the teacher writes for is drawn by the seed.

Summaries are kept in a file as they are written, so that an interrupted run does not write them again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from .conversion_data import Texts
from .output_errors import output_errors
from .student import Student
from .summary_data import encode_sources, end_id, start_ids
from .torch_decoder import graph_of
from .torch_encoder_decoder import TorchEncoderDecoder
from .write_summaries import write_summaries


def drawn_rows(count: int, share: float, seed: int) -> list[int]:
    """The rows, ascending, whose summaries the teacher writes: that share of ``count``."""
    kept = round(count * share)
    return sorted(np.random.default_rng((seed, count)).permutation(count)[:kept].tolist())


def with_teacher_summaries(
    texts: Texts,
    teacher: Student,
    *,
    share: float,
    beams: int,
    max_tokens: int,
    summary_tokens: int,
    seed: int,
    path: Path | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Texts:
    """The texts with the teacher's summaries in place of a share of the true ones.

    Where the teacher writes nothing, the true one stays.

    Args:
        share: 0 leaves the texts as they are, 1 replaces all.
        beams: of the teacher's beam search; 1 is greedy.
        max_tokens: of a source that the teacher reads.
        summary_tokens: the most that it writes.
        path: where to keep what was written; what it holds is taken up if it was written the same way.

    Raises:
        OutputError: the file cannot be written.
        StudentError: it is not known how the teacher's summaries start and end.
    """
    rows = drawn_rows(len(texts.texts), share, seed)
    if not rows:
        return texts
    how = {
        "teacher": teacher.sha256,
        "texts": texts.sha256,
        "rows": len(rows),
        "beams": beams,
        "max_tokens": max_tokens,
        "summary_tokens": summary_tokens,
        "seed": seed,
    }
    # Of several processes the first writes, the others read what it wrote.
    with _one_after_the_other(path):
        written = _kept(path, how)
        missing = [row for row in rows if row not in written]
        if on_progress is not None:
            on_progress(1 - len(missing) / len(rows))
        if missing:
            with _keeping(path, how, written) as keep:
                wanted = texts.part(missing).texts
                for some in _written(teacher, wanted, beams, max_tokens, summary_tokens):
                    found = {missing[place]: summary for place, summary in some.items()}
                    keep(found)
                    written |= found
                    if on_progress is not None:
                        on_progress(len(written) / len(rows))
    summaries = list(texts.summaries)
    for row in rows:
        summaries[row] = written[row] if written[row].strip() else summaries[row]
    return replace(texts, summaries=summaries)


def _written(
    teacher: Student, texts: Sequence[str], beams: int, max_tokens: int, summary_tokens: int
) -> Iterator[dict[int, str]]:
    graph = graph_of(teacher)
    if not isinstance(graph, TorchEncoderDecoder):
        raise TypeError(f"the family {teacher.anatomy.model_type} writes no summaries")
    sources = encode_sources(teacher, texts, min(max_tokens, teacher.max_tokens))
    ends = {*teacher.eos_ids, end_id(teacher)}
    for some in write_summaries(graph, sources, start_ids(teacher), sorted(ends), summary_tokens, beams):
        decoded = teacher.tokenizer.decode_batch(list(some.values()), skip_special_tokens=True)
        yield dict(zip(some, decoded, strict=True))


@contextmanager
def _one_after_the_other(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        yield


def _kept(path: Path | None, how: Mapping[str, Any]) -> dict[int, str]:
    """What a file holds of summaries that were written in this way; a line that a kill cut short is passed over."""
    if path is None or not path.is_file():
        return {}
    found: dict[int, str] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        if json.loads(lines[0]) != how:
            return {}
        for line in lines[1:]:
            content = json.loads(line)
            found[int(content["row"])] = str(content["summary"])
    except (ValueError, TypeError, KeyError):
        pass
    return found


@contextmanager
def _keeping(
    path: Path | None, how: Mapping[str, Any], written: Mapping[int, str]
) -> Iterator[Callable[[Mapping[int, str]], None]]:
    """Gives what appends summaries to the file, which is written anew with those that there are."""
    if path is None:
        yield lambda _: None
        return
    aside = path.with_name(f".{path.name}.writing")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text("".join(_lines(how, written)), encoding="utf-8")
        aside.replace(path)
        file = path.open("a", encoding="utf-8")

    def keep(found: Mapping[int, str]) -> None:
        with output_errors(path):
            file.writelines(_lines(None, found))
            file.flush()
            os.fsync(file.fileno())

    try:
        yield keep
    finally:
        file.close()


def _lines(how: Mapping[str, Any] | None, written: Mapping[int, str]) -> Iterator[str]:
    if how is not None:
        yield json.dumps(how) + "\n"
    for row, summary in written.items():
        yield json.dumps({"row": row, "summary": summary}, ensure_ascii=False) + "\n"
