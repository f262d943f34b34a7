"""Evaluating a summariser in torch, and each of its artifacts on its own engine.

Summaries are greedy, one beam and nothing forbidden, so that they tell how good the student is and not how it is
searched. Beside the figures of :mod:`~edgescribe.converters.summary_metrics` every report has those of a text's first
sentence: a student that does no better is of no use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..runtimes.encoder_decoder_contract import EncoderDecoderSession
from ..sdk.bundle import Bundle
from ..sdk.load import load_summarizer
from ..sdk.measure import Effort, measure_process
from ..sdk.sentences import sentences
from .conversion_data import Texts
from .conversion_report import Sample, Stage
from .distillation import UNLABELLED
from .evaluate import ArtifactEvaluation
from .metrics import SummaryMetrics
from .student import Student
from .summary_data import SETTINGS, SUMMARY_TOKENS, make_summary_examples, start_ids
from .summary_metrics import Written, foresee_summaries, summary_metrics
from .text_metrics import score_texts
from .torch_encoder_decoder import TorchEncoderDecoder
from .torch_graph import TorchGraph
from .training_data import Example
from .write_summaries import all_summaries

EVALUATED_TEXTS = 512
"""Texts that every stage summarises: about 1.5 points of ROUGE-L to either side."""

SAMPLES = 4
SAMPLE_CHARACTERS = 1500
BASELINE = "first sentence"
"""What reports call the baseline."""


@dataclass(frozen=True)
class SummaryData:
    """Texts with their reference summaries, and how long sources and summaries may be, in the artifacts' tokens.

    ``unpruned``: what the unpruned student wrote in float32; empty where there is none.
    """

    texts: list[str]
    references: list[str]
    source_tokens: int
    summary_tokens: int
    unpruned: list[str]


def summary_data(texts: Texts, source_tokens: int, summary_tokens: int) -> SummaryData:
    """The first texts of a file, at most :data:`EVALUATED_TEXTS`."""
    few = texts.part(range(min(len(texts.texts), EVALUATED_TEXTS)))
    return SummaryData(few.texts, few.summaries, source_tokens, summary_tokens, [])


def baseline_stage(data: SummaryData) -> Stage:
    """What a text's first sentence comes to as its summary: a row of the report."""
    leads = [" ".join(islice(sentences(text), 1)) for text in data.texts]
    metrics = SummaryMetrics(examples=len(leads), scores=score_texts(leads, data.references, data.texts))
    return Stage(name=BASELINE, kind="baseline", metrics=metrics, size_mib=0.0)


def evaluate_in_torch(
    graph: TorchGraph, data: SummaryData, on_progress: Callable[[float], None] | None = None
) -> tuple[SummaryMetrics, list[str]]:
    """Metrics of a student in torch, and its summaries."""
    student = graph.student
    if not isinstance(graph, TorchEncoderDecoder):
        raise TypeError(f"the family {student.anatomy.model_type} writes no summaries")

    def part(share: float, from_: float) -> None:
        if on_progress is not None:
            on_progress(from_ + share / 2)

    examples = _examples(student, data)
    losses, guesses = foresee_summaries(graph, examples, lambda share: part(share, 0.0))
    ids = all_summaries(
        graph,
        [_source(example) for example in examples],
        start_ids(student),
        student.eos_ids,
        data.summary_tokens,
        lambda share: part(share, 0.5),
    )
    summaries = [text.strip() for text in student.tokenizer.decode_batch(ids, skip_special_tokens=True)]
    written = Written(summaries, losses, guesses)
    return summary_metrics(written, data.references, data.texts, examples, data.unpruned), summaries


def evaluate_summarizer_artifact(
    bundle: Bundle,
    runtime: str,
    precision: str,
    data: SummaryData,
    *,
    tokens: int,
    effort: Effort,
    on_progress: Callable[[float], None] | None = None,
) -> ArtifactEvaluation:
    """Evaluate one artifact of a summariser's bundle on its engine, and measure it in a fresh process.

    Raises:
        EngineError: the engine is missing, cannot run the artifact or computes it wrongly.
    """

    def part(share: float, from_: float) -> None:
        if on_progress is not None:
            on_progress(from_ + share / 2)

    examples = _examples(tokenizing_student(bundle), data)
    losses, guesses, summaries = [], [], []
    with load_summarizer(bundle.folder, runtime=runtime, precision=precision) as summarizer:
        most = data.summary_tokens - len(summarizer.start_tokens)
        for number, text in enumerate(data.texts):
            written = summarizer.summarize(
                text,
                num_beams=1,
                max_new_tokens=most,
                min_new_tokens=0,
                no_repeat_ngram_size=0,
                lookup=False,
                truncate=True,
            )
            summaries.append(written.text.strip())
            with summarizer.borrowed() as session:
                loss, guess = _foreseen(session, examples[number])
            losses.append(loss)
            guesses.append(guess)
            part((number + 1) / len(data.texts), 0.0)
    metrics = summary_metrics(
        Written(summaries, losses, guesses), data.references, data.texts, examples, data.unpruned
    )
    process = measure_process(
        bundle.folder,
        runtime,
        precision,
        tokens=tokens,
        effort=effort,
        texts=data.texts[:16],
        on_progress=lambda share: part(share, 0.5),
    )
    outputs = np.concatenate(guesses).astype(np.float32)[:, None]
    return ArtifactEvaluation(runtime, precision, metrics, outputs, process, tuple(summaries))


def samples(data: SummaryData, written: dict[str, Sequence[str]]) -> tuple[Sample, ...]:
    """Some texts with their references and what each stage (``student``, ``<runtime>/<precision>``) wrote of them."""
    step = max(1, len(data.texts) // SAMPLES)
    return tuple(
        Sample(
            prompt=shortened(data.texts[number]),
            texts={stage: texts[number] for stage, texts in written.items()},
            reference=data.references[number],
        )
        for number in range(0, len(data.texts), step)
    )[:SAMPLES]


def shortened(text: str) -> str:
    """As much of a text as a reader of a report will read."""
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS].rsplit(" ", 1)[0] + " …"


def tokenizing_student(bundle: Bundle) -> Student:
    """A student without weights, which cuts texts and summaries as the bundle's does.

    Raises:
        ValueError: the bundle is of another task.
    """
    manifest = bundle.manifest
    summarizing = manifest.summarizing
    if summarizing is None:
        raise ValueError(f"{bundle.folder} is a bundle for {manifest.task}")
    config = {
        "model_type": manifest.family,
        "decoder_start_token_id": summarizing.start_ids[0],
        "eos_token_id": list(summarizing.end_ids),
        SETTINGS: {"summarization": {"prefix": summarizing.prefix}},
    }
    if len(summarizing.start_ids) > 1:
        config["forced_bos_token_id"] = summarizing.start_ids[1]
    return Student(
        config=config,
        state={},
        tokenizer=Tokenizer.from_file(str(bundle.folder / manifest.tokenizer.file.path)),
        tokenizer_config={},
        task="summarize",
        labels=(),
        max_tokens=summarizing.source_context,
        pad_id=manifest.tokenizer.pad_id,
        source=str(bundle.folder),
        sha256="",
    )


def contexts_of(bundle: Bundle) -> tuple[int, int]:
    """The most tokens of a source and of a summary."""
    summarizing = bundle.manifest.summarizing
    if summarizing is None:
        return bundle.manifest.tokenizer.max_tokens, SUMMARY_TOKENS
    return summarizing.source_context, summarizing.context


def _examples(student: Student, data: SummaryData) -> list[Example]:
    return make_summary_examples(
        student, data.texts, data.references, None, data.source_tokens, data.summary_tokens
    )


def _source(example: Example) -> NDArray[np.int32]:
    if example.source is None:
        raise ValueError("an example of a summary is expected")
    return example.source


def _foreseen(session: EncoderDecoderSession, example: Example) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Losses and guesses of a session for the labelled tokens of an example."""
    session.read(_source(example))
    rows = []
    for start in range(0, len(example.ids), session.most_verified):
        rows.append(session.verify(example.ids[start : start + session.most_verified]))
    session.rewind(0)
    logits = np.concatenate(rows).astype(np.float64)
    known = example.labels != UNLABELLED
    logits, labels = logits[known], example.labels[known]
    top = logits.max(axis=1)
    losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(labels)), labels]
    return losses.astype(np.float32), logits.argmax(axis=1)
