"""Making a decoder artifact's known answers: real prompts, and the logits that it gave for the likeliest tokens.

The artifact is held against the torch reference first, so that a fault of an exporter or an engine cannot become the
"known" answer. The tolerance lets pass what differs between CPUs (rounding of activations, other kernels) and not what
is garbage: it is :data:`TIMES_SEEN` times the largest difference from torch seen here, at least :data:`LEAST_SHARE` and
at most :data:`MOST_SHARE` of how far the likeliest logits stand out from the mean one, so that zeros are always found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import DataError, StudentError, WrongAnswerError
from ...runtimes.decoder_contract import DecoderSession
from ...sdk.manifest import DecoderAnswerEntry
from ..torch_graph import TorchGraph

PROMPTS = 2
PROMPT_TOKENS = 16
LIKELIEST = 8
TIMES_SEEN = 4.0
LEAST_SHARE = {"fp32": 0.01, "rounded": 0.1}
MOST_SHARE = 0.5
MOST_OFF = {"fp32": 0.01, "rounded": 0.35}
"""Largest difference from torch that is accepted here, as a share of how far the likeliest logits stand out."""


def prompts_of(graph: TorchGraph, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """The beginnings of the first texts that are long enough, as tokens int32 ``[n]``.

    Raises:
        DataError: no text has a token.
    """
    found: list[NDArray[np.int32]] = []
    for text in texts:
        ids = graph.student.tokenizer.encode(text, add_special_tokens=False).ids[:PROMPT_TOKENS]
        if len(ids) == PROMPT_TOKENS or (ids and len(texts) <= PROMPTS):
            found.append(np.array(ids, np.int32))
        if len(found) == PROMPTS:
            break
    if not found:
        raise DataError("known answers need a text of 16 tokens at least; give a data file with longer texts")
    return found


def make_decoder_answers(
    session: DecoderSession, graph: TorchGraph, prompts: Sequence[NDArray[np.int32]], name: str
) -> tuple[DecoderAnswerEntry, ...]:
    """The known answers of an opened artifact; the session is empty afterwards.

    Args:
        graph: the torch reference that the artifact was exported from.
        name: what messages call the artifact (``onnxruntime/w4a8-dynamic``).

    Raises:
        WrongAnswerError: the artifact's logits are not the reference's.
        StudentError: the reference's logits are all alike, so that no answer could tell garbage.
    """
    kind = "fp32" if graph.precision == "fp32" else "rounded"
    graph.eval()
    made = []
    for prompt in prompts:
        with torch.no_grad():
            expected = graph.run({"input_ids": torch.from_numpy(prompt.astype(np.int64))[None]})["logits"][0, -1]
        reference = expected.numpy()
        tokens = np.argsort(-reference, kind="stable")[:LIKELIEST]
        height = float(reference[tokens].mean() - reference.mean())
        if not height > 1e-6:
            raise StudentError("the student's logits are all alike; check the checkpoint and how it was trained")
        session.rewind(0)
        given = session.prefill(prompt)[tokens]
        session.rewind(0)
        off = float(np.abs(given - reference[tokens]).max())
        if not off <= MOST_OFF[kind] * height:
            used = session.effective
            raise WrongAnswerError(
                f"{name}: on {used.engine} {used.engine_version} the logits of the likeliest tokens are up to "
                f"{off:.3g} off the torch reference's, where {MOST_OFF[kind] * height:.3g} is allowed. The exporter or "
                "the engine computes this student wrongly: leave this runtime out, or take another precision"
            )
        tolerance = min(max(TIMES_SEEN * off, LEAST_SHARE[kind] * height), MOST_SHARE * height)
        made.append(
            DecoderAnswerEntry(
                prompt=tuple(prompt.tolist()),
                tokens=tuple(tokens.tolist()),
                logits=tuple(float(value) for value in given),
                tolerance=tolerance,
            )
        )
    return tuple(made)
