"""Making an artifact's known answers: real texts, and what the artifact gave for them on its engine where it was made.

The artifact is compared with the torch reference first, at lengths up to the longest; one that is further off than
rounding explains is refused, so that a fault of an exporter or an engine cannot become the "known" answer.

The tolerance lets pass what differs between CPUs and not what is garbage. Outputs of one int8 artifact differ by
rounding flips: an activation between two integers falls to the other side, and later layers make more of it. Between
engines, and between x86 and ARM, that came to 0.06 to 0.17 of the outputs' deviation over texts. So it is the larger
of a share of that deviation (:data:`SHARE_OF_DEVIATION`) and :data:`TIMES_SEEN` times the largest difference from
torch seen here, and at most :data:`SHARE_OF_SIGNAL` of what the two answers stand out from zeros and from each other:
then zeros, or one output for every text, are always found. (An untrained student hardly tells texts apart; where
rounding alone is more than that, the answers are held to stand out from zeros only.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import DataError, StudentError, WrongAnswerError
from ...runtimes.contract import GraphSession
from ...sdk.manifest import KnownAnswerEntry
from ..student import Student
from ..torch_graph import TorchGraph
from ..training_data import encode_texts

LENGTHS = (24, 12)
"""Most tokens of the two texts of a known answer: short, since they run at every start; unequal, to try padding."""

SHARE_OF_DEVIATION = {"float": 0.05, "rounded": 0.3}
LEAST_SHARE_OF_HEIGHT = {"float": 0.001, "rounded": 0.02}
TIMES_SEEN = 4.0
SHARE_OF_SIGNAL = 0.4

MOST_OFF = {"float": 0.01, "rounded": 0.2}
"""Largest difference from torch that is accepted here, as a share of how far the answers stand out from zeros."""

_CANDIDATES = 64
_CHECKED = 4


@dataclass(frozen=True)
class Reference:
    """Texts as feeds, and what the torch reference gives for them.

    Attributes:
        precision: of the graph that gave the outputs.
        known: feeds int32 ``[2, T]`` of the known answer, by input name.
        known_output: its output float32.
        checked: further feeds ``[1, T]`` with their outputs, compared once when the artifact is made.
        output: the output's name.
        height: how far each row of the known answer stands out from zeros at least, in the outputs' unit.
        apart: how far its rows are from each other.
        deviation: standard deviation of the outputs over texts.
    """

    precision: str
    known: Mapping[str, NDArray[np.int32]]
    known_output: NDArray[np.float32]
    checked: tuple[tuple[Mapping[str, NDArray[np.int32]], NDArray[np.float32]], ...]
    output: str
    height: float
    apart: float
    deviation: float

    @property
    def arithmetic(self) -> Literal["float", "rounded"]:
        """Whether activations are rounded."""
        return "float" if self.precision == "fp32" else "rounded"


def make_reference(graph: TorchGraph, texts: Sequence[str], max_tokens: int) -> Reference:
    """Choose two of the texts and run the torch reference.

    The first is the text whose output is furthest from the mean, the second the one furthest from the first.

    Raises:
        DataError: fewer than two different texts.
        StudentError: the outputs are all zero or no numbers: no answer could tell a working engine from a broken one.
    """
    graph.eval()
    different = list(dict.fromkeys(text for text in texts if text.strip()))[:_CANDIDATES]
    if len(different) < 2:
        raise DataError("known answers need two different texts at least; give a data file with more texts")
    student = graph.student
    long, short = (_candidates(student, different, min(length, max_tokens)) for length in LENGTHS)
    outputs, others = ([_run(graph, feeds)[1] for feeds in side] for side in (long, short))
    summaries, other_summaries = (np.stack([_by_text(each) for each in side]) for side in (outputs, others))
    mean = summaries.mean(axis=0)
    first = int(np.abs(summaries - mean).max(axis=1).argmax())
    apart = np.abs(other_summaries - summaries[first]).max(axis=1)
    second = int(np.where(np.arange(len(apart)) == first, -1.0, apart).argmax())
    deviation = float(np.sqrt(summaries.var(axis=0).mean()))
    height = float(min(np.abs(summaries[first]).max(), np.abs(other_summaries[second]).max()))
    if not height > 1e-6:
        raise StudentError(
            f"the student's outputs are all 0 or no numbers (largest: {height:.2g}), so no known answer can tell a "
            "working engine from a broken one; check the checkpoint and how it was trained"
        )
    known = _batch(student, [long[first], short[second]])
    name, known_output = _run(graph, known)
    whole = _candidates(student, different, max_tokens)
    by_length = sorted(whole, key=lambda feeds: feeds["input_ids"].shape[1])
    picked = {round(share * (len(by_length) - 1)) for share in np.linspace(0, 1, _CHECKED)}
    checked = tuple((by_length[place], _run(graph, by_length[place])[1]) for place in sorted(picked))
    return Reference(graph.precision, known, known_output, checked, name, height, float(apart[second]), deviation)


def make_known_answers(session: GraphSession, reference: Reference, name: str) -> tuple[KnownAnswerEntry, ...]:
    """The known answers of an opened artifact: what it gave here, and how far another machine's may be off.

    Args:
        session: the artifact on its engine.
        reference: of the graph that the artifact was exported from.
        name: what messages call the artifact (``onnxruntime/w8a8-static``).

    Raises:
        WrongAnswerError: the artifact's outputs are not the reference's.
    """
    inputs = [spec.name for spec in session.inputs]
    given = session.run({each: reference.known[each] for each in inputs})
    kept = reference.known["attention_mask"].astype(bool)
    pairs = [(given[reference.output], reference.known_output, kept)]
    for feeds, expected in reference.checked:
        output = session.run({each: feeds[each] for each in inputs})[reference.output]
        pairs.append((output, expected, feeds["attention_mask"].astype(bool)))
    largest = max(_largest_difference(*pair) for pair in pairs)
    allowed = MOST_OFF[reference.arithmetic] * reference.height
    if not largest <= allowed:
        raise WrongAnswerError(
            f"{name}: on {session.effective.engine} {session.effective.engine_version} its outputs are up to "
            f"{largest:.3g} off the torch reference's, where {allowed:.3g} is allowed. The exporter or the engine "
            "computes this student wrongly: leave this runtime out, take another precision, or another engine version"
        )
    output = given[reference.output]
    answer = KnownAnswerEntry(
        feeds={each: reference.known[each].tolist() for each in inputs},
        outputs={reference.output: [float(value) for value in output.ravel()]},
        shapes={reference.output: output.shape},
        tolerance=tolerance_of(reference, largest),
    )
    return (answer,)


def tolerance_of(reference: Reference, largest: float) -> float:
    """The absolute tolerance, given the largest difference from torch that was seen; see the module's text."""
    noise = max(2 * largest, LEAST_SHARE_OF_HEIGHT[reference.arithmetic] * reference.height)
    wanted = max(SHARE_OF_DEVIATION[reference.arithmetic] * reference.deviation, TIMES_SEEN * largest, noise)
    limit = SHARE_OF_SIGNAL * min(reference.height, reference.apart)
    if limit < noise:
        limit = SHARE_OF_SIGNAL * reference.height
    return min(wanted, limit)


def _candidates(student: Student, texts: Sequence[str], max_tokens: int) -> list[dict[str, NDArray[np.int32]]]:
    """Feeds ``[1, T]`` of each text, cut at ``max_tokens``."""
    return [
        {
            "input_ids": ids[None],
            "attention_mask": np.ones_like(ids)[None],
            "token_type_ids": types[None],
        }
        for ids, types in encode_texts(student.tokenizer, texts, max_tokens)
    ]


def _batch(student: Student, rows: Sequence[Mapping[str, NDArray[np.int32]]]) -> dict[str, NDArray[np.int32]]:
    width = max(row["input_ids"].shape[1] for row in rows)
    fills = {"input_ids": student.pad_id, "attention_mask": 0, "token_type_ids": 0}
    side: Literal["left", "right"] = student.anatomy.padding_side
    batch = {}
    for name, fill in fills.items():
        batch[name] = np.full((len(rows), width), fill, np.int32)
        for place, row in enumerate(rows):
            length = row[name].shape[1]
            kept = slice(width - length, width) if side == "left" else slice(0, length)
            batch[name][place, kept] = row[name][0]
    return batch


def _run(graph: TorchGraph, feeds: Mapping[str, NDArray[np.int32]]) -> tuple[str, NDArray[np.float32]]:
    with torch.no_grad():
        outputs = graph.run({name: torch.from_numpy(array.astype(np.int64)) for name, array in feeds.items()})
    ((name, value),) = outputs.items()
    return name, value.numpy()


def _by_text(output: NDArray[np.float32]) -> NDArray[np.float64]:
    """``[labels]``, of a tagger the first word's: one row to compare texts by."""
    rows = output[0].astype(np.float64)
    return np.asarray(rows[min(1, len(rows) - 1)] if rows.ndim == 2 else rows)


def _largest_difference(
    given: NDArray[np.float32], expected: NDArray[np.float32], kept: NDArray[np.bool_]
) -> float:
    """Over what is not padding; infinite where shapes differ or a value is not a number."""
    if given.shape != expected.shape:
        return float("inf")
    off = np.abs(given.astype(np.float64) - expected)
    if off.ndim == 3:
        off = off[kept]
    return float(off.max()) if np.isfinite(off).all() else float("inf")
