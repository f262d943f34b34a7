"""Figures of summaries: how references are foreseen, what the first sentence comes to, what a report takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgescribe.converters.conversion_data import Texts, examples_of
from edgescribe.converters.evaluate_summaries import (
    BASELINE,
    SAMPLE_CHARACTERS,
    baseline_stage,
    evaluate_in_torch,
    evaluate_summarizer_artifact,
    samples,
    summary_data,
)
from edgescribe.converters.metrics import Metrics, SummaryMetrics
from edgescribe.converters.summary_metrics import Written, foresee_summaries, scorer, summary_metrics
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.errors import DataError
from edgescribe.sdk.bundle import read_bundle
from edgescribe.sdk.measure import Effort

BRIEF = Effort(samples=8, seconds=0, warmup=1)


def test_what_is_foreseen_is_the_same_alone_and_together(summarizer: Any, evaluation_texts: Any) -> None:
    graph = graph_of(summarizer)
    examples = examples_of(evaluation_texts.part(range(40)), summarizer)
    told: list[float] = []
    losses, guesses = foresee_summaries(graph, examples, told.append)
    assert told[-1] == 1.0
    for number in (0, 17, 39):
        (alone,), (guess,) = foresee_summaries(graph, [examples[number]])
        np.testing.assert_allclose(losses[number], alone, atol=1e-4)
        assert guesses[number].tolist() == guess.tolist()
        assert len(alone) == len(examples[number].labels)
    assert scorer(examples)(graph) == pytest.approx(-float(np.concatenate(losses).mean()))


def test_metrics_of_summaries(summarizer: Any, evaluation_texts: Any) -> None:
    few = evaluation_texts.part(range(3))
    examples = examples_of(few, summarizer)
    right = [example.labels for example in examples]
    losses = [np.full(len(each), np.log(2), np.float32) for each in right]
    written = Written(["", *few.summaries[1:]], losses, right)
    found = summary_metrics(written, few.summaries, few.texts, examples, few.summaries)
    assert found.perplexity == pytest.approx(2.0)
    assert found.token_accuracy == 1.0
    assert found.agreement == pytest.approx(2 / 3)
    assert found.score == found.values()["rougeL"] == pytest.approx(2 / 3)
    assert found.scores["rougeL"].low < found.score < found.scores["rougeL"].high
    assert {"chrf", "compression", "copied_3grams", "cross_entropy"} <= found.values().keys()
    back = msgspec.json.decode(msgspec.json.encode(found), type=Metrics)
    assert isinstance(back, SummaryMetrics)
    assert back == found
    with pytest.raises(DataError, match="nothing to evaluate"):
        summary_metrics(Written([], [], []), [], [], [])


def test_the_first_sentence_is_the_baseline() -> None:
    texts = Texts("summarize", ["Tea is hot. It cools.", "Tea!"], [], "", ["Tea is hot", "coffee"])
    stage = baseline_stage(summary_data(texts, 64, 24))
    assert (stage.name, stage.kind) == (BASELINE, "baseline")
    assert isinstance(stage.metrics, SummaryMetrics)
    assert stage.metrics.score == pytest.approx(0.5)
    assert "cross_entropy" not in stage.metrics.values()


def test_samples_stand_side_by_side_and_are_not_endless() -> None:
    texts = Texts("summarize", ["long " * 1000, *("short" for _ in range(9))], [], "", [f"s{n}" for n in range(10)])
    data = summary_data(texts, 64, 24)
    found = samples(data, {"student": [f"a{n}" for n in range(10)], "litert/fp32": [f"b{n}" for n in range(10)]})
    assert len(found) == 4
    assert found[0].texts == {"student": "a0", "litert/fp32": "b0"}
    assert found[0].reference == "s0"
    assert found[0].prompt.endswith(" …")
    assert len(found[0].prompt) <= SAMPLE_CHARACTERS + 2
    assert found[1].reference == "s2"


@pytest.mark.slow
def test_engines_come_to_what_torch_comes_to(
    summarizer_bundle: Path, summarizer: Any, evaluation_texts: Any
) -> None:
    bundle = read_bundle(summarizer_bundle)
    data = summary_data(evaluation_texts, 64, 24)
    metrics, _ = evaluate_in_torch(graph_of(summarizer, "w8a8-dynamic"), data)
    assert metrics.score > 0.9
    for artifact in bundle.manifest.artifacts:
        found = evaluate_summarizer_artifact(
            bundle, artifact.runtime, artifact.precision, data, tokens=32, effort=BRIEF
        )
        assert isinstance(found.metrics, SummaryMetrics)
        assert found.metrics.score == pytest.approx(metrics.score, abs=0.005)
        assert found.metrics.cross_entropy == pytest.approx(metrics.cross_entropy, abs=0.01)
        assert len(found.texts) == len(data.texts)
        assert found.process.ttft_ms is not None
