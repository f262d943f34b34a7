"""What a conversion came to, as plain data: what :mod:`edgescribe.converters.report` writes as JSON and HTML."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ..sdk.budget_check import BudgetReport
from ..sdk.manifest import Provenance
from .evaluate import Agreement, ArtifactEvaluation
from .metrics import Metrics
from .training import TrainingResult


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Latency and memory of one stage. ``how`` as in the manifest; milliseconds at batch 1, MiB, calls a second.

    A writer's latency is that of a decode step behind a prompt of ``tokens`` tokens; ``ttft_ms`` from that prompt to
    the first token, ``tokens_per_s`` while decoding. Of a summariser likewise behind a source of ``tokens`` tokens,
    where ``tokens_per_s`` counts reading it too.
    ``cold_ms``: from starting the process to the first answer, None where no fresh process was measured.
    """

    how: Literal["measured", "estimated", "emulated", "simulated"]
    engine: str
    threads: int
    tokens: int
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput_per_s: float
    peak_rss_mib: float | None = None
    load_ms: float | None = None
    cold_ms: float | None = None
    ttft_ms: float | None = None
    tokens_per_s: float | None = None


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the report's table.

    Attributes:
        name: ``teacher``, ``student`` or ``<runtime>/<precision>``; a baseline's own name.
        kind: what it is; a baseline is a plain method that students are to do better than.
        metrics: its quality on the evaluation data; None where it was not evaluated.
        size_mib: its file or files on disk, an artifact's with the tokenizer.
        parameters: number of weights; None where not counted.
        timing: None where it was not timed.
    """

    name: str
    kind: Literal["baseline", "teacher", "student", "artifact"]
    metrics: Metrics | None
    size_mib: float
    parameters: int | None = None
    timing: Timing | None = None


class TrainingCurve(msgspec.Struct, frozen=True, kw_only=True):
    """How one training went: ``losses`` one a step; ``scores`` of validation at ``score_steps``."""

    name: str
    losses: tuple[float, ...]
    score_steps: tuple[int, ...]
    scores: tuple[float, ...]
    seconds: float


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What was written to one ``prompt``: ``texts`` by stage (``student``, ``<runtime>/<precision>``).

    Of a summariser ``prompt`` is the text, and ``reference`` its true summary.
    """

    prompt: str
    texts: dict[str, str]
    reference: str | None = None


class ConversionReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole conversion.

    Attributes:
        name: the student's name.
        task: what it does.
        family: its family.
        stages: teacher, student as it came, and every artifact.
        verdicts: the budget of each device asked for against the artifact that runs there.
        agreements: how far runtimes agree, by precision.
        training: one curve for each training.
        recipe: what was done to the student.
        provenance: where the bundle comes from.
        machine: what measured, in words.
        rows: number of texts by what they served for (``train``, ``validation``, ``evaluation``).
        seconds: how long the conversion took.
        samples: of a writer or summariser: what it wrote at each stage.
        notes: what a reader should know beside the figures (a busy machine, labels without examples).
    """

    name: str
    task: Literal["classify", "tag", "embed", "generate", "summarize"]
    family: str
    stages: tuple[Stage, ...]
    verdicts: tuple[BudgetReport, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    training: tuple[TrainingCurve, ...] = ()
    recipe: dict[str, Any] = {}
    provenance: Provenance
    machine: str
    rows: dict[str, int] = {}
    seconds: float = 0.0
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()


def artifact_stage(evaluation: ArtifactEvaluation) -> Stage:
    """An artifact's row, from its evaluation."""
    process = evaluation.process
    used = process.effective
    return Stage(
        name=evaluation.name,
        kind="artifact",
        metrics=evaluation.metrics,
        size_mib=process.disk_mib,
        timing=Timing(
            how="measured",
            engine=f"{used.engine} {used.engine_version}",
            threads=used.threads,
            tokens=process.tokens,
            samples=process.samples,
            p50_ms=process.percentile(50),
            p90_ms=process.percentile(90),
            p99_ms=process.percentile(99),
            throughput_per_s=process.throughput_per_s,
            peak_rss_mib=process.peak_rss_mib,
            load_ms=process.load_ms,
            cold_ms=process.cold_ms,
            ttft_ms=process.ttft_ms,
            tokens_per_s=process.tokens_per_s,
        ),
    )


def training_curve(name: str, result: TrainingResult) -> TrainingCurve:
    """A training's curve, from what the trainer returned."""
    return TrainingCurve(
        name=name,
        losses=tuple(result.losses),
        score_steps=tuple(int(row["step"]) for row in result.history),
        scores=tuple(float(row["score"]) for row in result.history),
        seconds=result.seconds,
    )
