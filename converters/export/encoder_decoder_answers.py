"""Making an encoder-decoder artifact's known answers: real sources, what was begun to be written about each, and the
logits that it gave for the likeliest tokens.

As :mod:`~edgescribe.converters.export.decoder_answers`, whose limits hold: the artifact is held against the torch
reference first. The second answer's prompt is some tokens into a summary, so that the cache is seen to work too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import DataError, StudentError, WrongAnswerError
from ...runtimes.encoder_decoder_contract import EncoderDecoderSession
from ...sdk.manifest import SourceAnswerEntry
from ..summary_data import encode_sources, end_id, start_ids
from ..torch_encoder_decoder import TorchEncoderDecoder
from ..torch_graph import TorchGraph
from ..write_summaries import all_summaries
from .decoder_answers import LEAST_SHARE, LIKELIEST, MOST_OFF, MOST_SHARE, TIMES_SEEN

SOURCES = 2
SOURCE_TOKENS = 48
LEAST_TOKENS = 8
BEGUN_TOKENS = 4


@dataclass(frozen=True)
class Question:
    """What an artifact is asked: a source's tokens, and those written about it so far, int32 ``[s]`` and ``[n]``."""

    source: NDArray[np.int32]
    prompt: NDArray[np.int32]


def questions_of(graph: TorchGraph, texts: Sequence[str]) -> list[Question]:
    """Questions made of the beginnings of the first texts that are long enough.

    Raises:
        DataError: no text has a token.
    """
    if not isinstance(graph, TorchEncoderDecoder):
        raise TypeError(f"the family {graph.anatomy.model_type} reads no sources")
    student = graph.student
    sources = encode_sources(student, texts, min(SOURCE_TOKENS, student.max_tokens))
    long = [source for source in sources if len(source) >= LEAST_TOKENS]
    chosen = (long or [source for source in sources if len(source)])[:SOURCES]
    if not chosen:
        raise DataError("known answers need a text; the data file has none with a token")
    start = start_ids(student)
    begun = all_summaries(graph, chosen, start, [end_id(student)], len(start) + BEGUN_TOKENS)
    questions = []
    for number, (source, written) in enumerate(zip(chosen, begun, strict=True)):
        prompt = [*start, *(written if number else [])]
        questions.append(Question(source, np.array(prompt, np.int32)))
    return questions


def make_source_answers(
    session: EncoderDecoderSession, graph: TorchGraph, questions: Sequence[Question], name: str
) -> tuple[SourceAnswerEntry, ...]:
    """The known answers of an opened artifact; its target is empty afterwards.

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
    for question in questions:
        feeds = {
            "source_ids": torch.from_numpy(question.source.astype(np.int64))[None],
            "input_ids": torch.from_numpy(question.prompt.astype(np.int64))[None],
        }
        with torch.no_grad():
            reference = graph.run(feeds)["logits"][0, -1].numpy()
        tokens = np.argsort(-reference, kind="stable")[:LIKELIEST]
        height = float(reference[tokens].mean() - reference.mean())
        if not height > 1e-6:
            raise StudentError("the student's logits are all alike; check the checkpoint and how it was trained")
        session.read(question.source)
        given = session.prefill(question.prompt)[tokens]
        session.rewind(0)
        off = float(np.abs(given - reference[tokens]).max())
        if not off <= MOST_OFF[kind] * height:
            used = session.effective
            raise WrongAnswerError(
                f"{name}: on {used.engine} {used.engine_version} the logits of the likeliest tokens are up to "
                f"{off:.3g} off the torch reference's, where {MOST_OFF[kind] * height:.3g} is allowed. The exporter or "
                "the engine computes this student wrongly: leave this runtime out, or take another precision"
            )
        made.append(
            SourceAnswerEntry(
                source=tuple(question.source.tolist()),
                prompt=tuple(question.prompt.tolist()),
                tokens=tuple(tokens.tolist()),
                logits=tuple(float(value) for value in given),
                tolerance=min(max(TIMES_SEEN * off, LEAST_SHARE[kind] * height), MOST_SHARE * height),
            )
        )
    return tuple(made)
