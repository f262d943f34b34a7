"""The check that every open makes: an engine must give an artifact's known answers before it is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import BundleError, InputError, WrongAnswerError
from .contract import GraphSession, KnownAnswer


def check_known_answers(session: GraphSession, answers: Sequence[KnownAnswer], artifact: Path) -> None:
    """Run each known answer and compare every element of its outputs; ``artifact`` is for the messages.

    Raises:
        WrongAnswerError: an output is further off than the tolerance, not a number, or of another shape.
        BundleError: the known answer does not belong to this artifact (other inputs or outputs).
    """
    for number, answer in enumerate(answers, 1):
        where = f"{artifact.name}, known answer {number} of {len(answers)}"
        try:
            outputs = session.run(answer.feeds)
        except InputError as error:
            raise BundleError(f"{where} does not fit the artifact: {error}; make the bundle anew") from error
        for name, expected in answer.expected.items():
            if name not in outputs:
                names = ", ".join(outputs)
                raise BundleError(f"{where} expects output {name!r}; the artifact gives {names}; make the bundle anew")
            problem = _difference(outputs[name], np.asarray(expected, np.float32), answer.tolerance)
            if problem:
                used = session.effective
                raise WrongAnswerError(
                    f"{where}: output {name!r} {problem}, on {used.engine} {used.engine_version} ({used.device}). "
                    "The engine computes this artifact wrongly here, so it was not opened: "
                    "take another runtime or precision of the bundle, or another version of the engine"
                )


def _difference(got: np.ndarray, expected: np.ndarray, tolerance: float) -> str:
    """What is wrong with ``got``, or an empty string."""
    if got.shape != expected.shape:
        return f"has shape {list(got.shape)} instead of {list(expected.shape)}"
    off = np.abs(got.astype(np.float64) - expected)
    wrong = ~(off <= tolerance)
    if not wrong.any():
        return ""
    at = np.unravel_index(int(np.argmax(np.where(np.isnan(off), np.inf, off))), off.shape)
    index = ", ".join(str(int(i)) for i in at)
    zeros = " (every element is 0)" if not got.any() else ""
    return (
        f"is {float(got[at]):.6g} at [{index}] instead of {float(expected[at]):.6g}: off by {float(off[at]):.3g} "
        f"where {tolerance:.3g} is allowed, {int(wrong.sum())} of {wrong.size} elements wrong{zeros}"
    )
