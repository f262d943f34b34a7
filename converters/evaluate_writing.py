"""Evaluating a writer in torch, and each of its artifacts on its own engine in a fresh process of the device side.

Quality is how well held-out text is foreseen, token by token (:mod:`~edgescribe.converters.language_metrics`), and how
often the likeliest token is the unpruned student's in float32. What each writes to the same prompts is kept beside it,
for people to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..sdk.load import load_writer
from ..sdk.measure import Effort, measure_process, outputs_of
from .cached_decoder import greedy_continuation
from .conversion_report import Sample
from .evaluate import ArtifactEvaluation
from .language_metrics import foresee, writing_metrics
from .metrics import WritingMetrics
from .student import Student
from .torch_decoder import TorchDecoder, graph_of
from .torch_graph import TorchGraph
from .writing_data import encode_writing

EVALUATED_TOKENS = 16_384
"""Tokens of the evaluation texts that are foreseen by every stage: about 0.01 nats of standard error."""

SAMPLES = 2
PROMPT_CHARACTERS = 160
SAMPLE_TOKENS = 40


@dataclass(frozen=True)
class WritingData:
    """Texts in the student's tokens, each piece short enough for the artifacts' context.

    ``reference``: the likeliest tokens by the unpruned student in float32, where its tokens are the same.
    """

    texts: list[str]
    tokens: list[NDArray[np.int32]]
    reference: list[NDArray[np.int64]]


def evaluated_texts(student: Student, texts: Sequence[str], context: int) -> list[str]:
    """The first texts, as many as have :data:`EVALUATED_TOKENS` tokens, each cut to the context."""
    kept, count = [], 0
    for text in texts:
        encoding = student.tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) > context:
            text = text[: encoding.offsets[context - 1][0]].rstrip()
            encoding = student.tokenizer.encode(text, add_special_tokens=False)
        if 2 <= len(encoding.ids) <= context:
            kept.append(text)
            count += len(encoding.ids)
        if count >= EVALUATED_TOKENS:
            break
    return kept


def evaluate_in_torch(
    graph: TorchGraph,
    texts: Sequence[str],
    reference: Sequence[NDArray[np.int64]],
    on_progress: Callable[[float], None] | None = None,
) -> tuple[WritingMetrics, list[NDArray[np.int64]]]:
    """Metrics of a student in torch, and its likeliest tokens."""
    tokens = encode_writing(graph.student, texts, graph.student.max_tokens)
    losses, guesses = foresee(graph, tokens, on_progress)
    return writing_metrics(losses, guesses, tokens, texts, reference), guesses


def evaluate_writer_artifact(
    bundle: str | Path,
    runtime: str,
    precision: str,
    data: WritingData,
    *,
    tokens: int,
    effort: Effort,
    on_progress: Callable[[float], None] | None = None,
) -> ArtifactEvaluation:
    """Evaluate and measure one artifact of a writer's bundle on its engine, in fresh processes of the device side.

    Raises:
        BundleError: the bundle lacks the artifact, or splits the texts otherwise than ``data`` has them.
        EngineError: the engine is missing, cannot run the artifact or computes it wrongly.
    """

    def part(share: float, from_: float) -> None:
        if on_progress is not None:
            on_progress(from_ + share / 2)

    found = outputs_of(bundle, data.texts, runtime, precision, on_progress=lambda x: part(x, 0.0))
    if found.lengths.tolist() != [len(ids) for ids in data.tokens]:
        raise BundleError(f"{bundle}: its tokenizer splits the texts otherwise than the student's; make it anew")
    rows = np.split(found.values, np.cumsum([len(ids) - 1 for ids in data.tokens])[:-1])
    metrics = writing_metrics(
        [row[:, 0] for row in rows],
        [row[:, 1].astype(np.int64) for row in rows],
        data.tokens,
        data.texts,
        data.reference,
    )
    process = measure_process(
        bundle,
        runtime,
        precision,
        tokens=tokens,
        effort=effort,
        texts=data.texts[:16],
        on_progress=lambda x: part(x, 0.5),
    )
    return ArtifactEvaluation(runtime, precision, metrics, found.values[:, 1:], process)


def samples(
    student: Student,
    bundle: str | Path,
    artifacts: Sequence[tuple[str, str]],
    texts: Sequence[str],
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Sample, ...]:
    """What the unpruned student in torch and every artifact (runtime, precision) write to the same beginnings.

    All are greedy, with at most :data:`SAMPLE_TOKENS` tokens.
    """
    prompts = [beginning(text) for text in texts if len(text) > PROMPT_CHARACTERS][:SAMPLES]
    written: list[dict[str, str]] = [{} for _ in prompts]
    graph = graph_of(student).eval()
    steps = len(prompts) * (1 + len(artifacts))
    for number, prompt in enumerate(prompts):
        written[number]["student"] = _greedy(graph, prompt)
        if on_progress is not None:
            on_progress((number + 1) / steps)
    for place, (runtime, precision) in enumerate(artifacts, 1):
        with closing(load_writer(bundle, runtime=runtime, precision=precision)) as writer:
            for number, prompt in enumerate(prompts):
                given = writer.generate(prompt, max_new_tokens=SAMPLE_TOKENS, temperature=0.0)
                written[number][f"{runtime}/{precision}"] = given.text
                if on_progress is not None:
                    on_progress((place * len(prompts) + number + 1) / steps)
    return tuple(Sample(prompt=prompt, texts=texts) for prompt, texts in zip(prompts, written, strict=True))


def beginning(text: str) -> str:
    """The first words of a text."""
    return text[:PROMPT_CHARACTERS].rsplit(" ", 1)[0]


def _greedy(graph: TorchGraph, prompt: str) -> str:
    if not isinstance(graph, TorchDecoder):
        raise TypeError(f"a student of {graph.anatomy.model_type} writes no texts")
    tokenizer = graph.student.tokenizer
    ids = list(tokenizer.encode(prompt).ids)
    whole: str = tokenizer.decode(ids + greedy_continuation(graph, ids, SAMPLE_TOKENS))
    return whole[len(tokenizer.decode(ids)) :]
