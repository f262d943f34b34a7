"""A bundle of a summariser, as its maker leaves it: what stands in it, and that every engine summarises with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgescribe
import numpy as np
import pytest
import torch
from edgescribe.converters.evaluate_summaries import tokenizing_student
from edgescribe.converters.export.encoder_decoder_answers import make_source_answers, questions_of
from edgescribe.converters.make_summarizer_bundle import make_summarizer_bundle, summarizing_entry
from edgescribe.converters.summary_data import make_summary_examples, with_prefix
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.errors import DataError, StudentError, UsageError, WrongAnswerError
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions
from edgescribe.runtimes.registry import open_encoder_decoder
from edgescribe.sdk.bundle import read_bundle

RUNTIMES = ("onnxruntime", "openvino", "litert")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_summarises_with_it(summarizer_bundle: Path, summary_files: Any, runtime: str) -> None:
    rows = [json.loads(line) for line in summary_files.evaluation.read_text(encoding="utf-8").splitlines()][:20]
    with edgescribe.load_summarizer(summarizer_bundle, runtime=runtime) as summarizer:
        written = [summarizer.summarize(row["text"]).text for row in rows]
    assert sum(text == row["summary"] for text, row in zip(written, rows, strict=True)) >= 18


def test_what_stands_in_it(summarizer_bundle: Path, summarizer: Any) -> None:
    manifest = read_bundle(summarizer_bundle).manifest
    entry = manifest.summarizing
    assert manifest.task == "summarize"
    assert entry is not None
    assert (entry.source_context, entry.context, entry.prefix) == (64, 24, "summarize: ")
    assert (entry.start_ids, entry.end_ids) == ((0,), (1,))
    assert entry.vocabulary == summarizer.shape.vocabulary
    assert [artifact.runtime for artifact in manifest.artifacts] == list(RUNTIMES)
    for artifact in manifest.artifacts:
        first, second = artifact.source_answers
        assert first.prompt == (0,)
        assert second.prompt[0] == 0
        assert len(second.prompt) > 1


def test_a_bundle_cuts_texts_as_its_student_does(summarizer_bundle: Path, summarizer: Any) -> None:
    student = tokenizing_student(read_bundle(summarizer_bundle))
    texts, summaries = ["It was cold. Today Anna buys tea."], ["Anna buys tea"]
    (ours,), (theirs,) = (make_summary_examples(each, texts, summaries) for each in (summarizer, student))
    for name in ("source", "ids", "labels"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_generation_defaults_are_the_checkpoints_with_lengths_behind_the_start(summarizer: Any) -> None:
    generation = {
        "decoder_start_token_id": 0, "forced_bos_token_id": 3, "eos_token_id": [1, 2], "num_beams": 4,
        "max_length": 20, "min_length": 8, "early_stopping": True, "length_penalty": 0.5, "no_repeat_ngram_size": 3,
        "do_sample": False, "top_k": 50,
    }  # fmt: skip
    entry = summarizing_entry(replace(summarizer, generation=generation), 32, 64)
    assert entry.start_ids == (0, 3)
    assert entry.end_ids == (1, 2)
    assert entry.defaults == {
        "num_beams": 4.0, "max_new_tokens": 18.0, "min_new_tokens": 6.0, "early_stopping": 1.0,
        "length_penalty": 0.5, "no_repeat_ngram_size": 3.0,
    }  # fmt: skip
    short = summarizing_entry(replace(summarizer, generation={**generation, "max_new_tokens": 60}), 32, 16)
    assert short.defaults["max_new_tokens"] == 14.0
    # What tells how it summarises goes before what holds for every task, and nonsense is left out.
    settings = {"summarization": {"num_beams": 2, "length_penalty": "long", "no_repeat_ngram_size": -1}}
    config = {**summarizer.config, "task_specific_params": settings}
    assert summarizing_entry(replace(summarizer, config=config), 32, 16).defaults == {"num_beams": 2.0}


def test_what_cannot_be_made(summarizer: Any, tmp_path: Path) -> None:
    graphs = {"fp32": graph_of(summarizer)}
    arguments: dict[str, Any] = {
        "texts": ["Today Anna buys tea outside."], "source": summarizer, "recipe": {}, "seed": 0, "data_sha256": {},
    }  # fmt: skip
    out = tmp_path / "bundle"
    with pytest.raises(UsageError, match="2 to 64 tokens"):
        make_summarizer_bundle(summarizer, graphs, ["litert"], out, max_tokens=65, **arguments)
    with pytest.raises(UsageError, match="summary_tokens is 1"):
        make_summarizer_bundle(summarizer, graphs, ["litert"], out, summary_tokens=1, **arguments)
    with pytest.raises(UsageError, match="at least one"):
        make_summarizer_bundle(summarizer, graphs, [], out, **arguments)
    with pytest.raises(UsageError, match="no runtime 'tensorrt'"):
        make_summarizer_bundle(summarizer, graphs, ["tensorrt"], out, **arguments)
    with pytest.raises(DataError, match="known answers need a text"):
        make_summarizer_bundle(summarizer, graphs, ["litert"], out, **{**arguments, "texts": []})
    with pytest.raises(UsageError, match="is of 'fp32'"):
        make_summarizer_bundle(summarizer, {"w8a8-static": graphs["fp32"]}, ["litert"], out, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_of_other_weights_is_found_out(summarizer_bundle: Path, summarizer: Any) -> None:
    other = summarizer.with_state({name: tensor.flip(0) for name, tensor in summarizer.state.items()})
    graph = graph_of(other, "w8a8-dynamic")
    bundle = read_bundle(summarizer_bundle)
    artifact = bundle.manifest.artifacts[0]
    questions = questions_of(graph, ["Today Anna buys tea outside, and then again."])
    session = open_encoder_decoder(artifact.runtime, bundle.artifact_path(artifact), EncoderDecoderOptions(threads=1))
    try:
        with pytest.raises(WrongAnswerError, match="onnxruntime/w8a8-dynamic"):
            make_source_answers(session, graph, questions, "onnxruntime/w8a8-dynamic")
        flat = summarizer.with_state({name: tensor * 0 for name, tensor in summarizer.state.items()})
        with pytest.raises(StudentError, match="all alike"):
            make_source_answers(session, graph_of(flat), questions, "onnxruntime/fp32")
    finally:
        session.close()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_float_artifacts_say_what_torch_says(
    summarizer: Any, evaluation_texts: Any, tmp_path: Path, runtime: str
) -> None:
    student = with_prefix(summarizer, "summarize: ")
    graph = graph_of(student)
    make_summarizer_bundle(
        student, {"fp32": graph}, [runtime], tmp_path / "bundle", texts=evaluation_texts.texts, source=student,
        recipe={}, seed=0, data_sha256={}, summary_tokens=12,
    )  # fmt: skip
    opened = edgescribe.load_summarizer(tmp_path / "bundle", runtime=runtime)
    with opened, opened.borrowed() as session:
        for example in make_summary_examples(student, evaluation_texts.texts[:5], evaluation_texts.summaries[:5]):
            session.read(example.source)
            got = np.concatenate([session.step(int(token))[None] for token in example.ids])
            feeds = {
                "source_ids": torch.tensor([example.source.tolist()]),
                "input_ids": torch.tensor([example.ids.tolist()]),
            }
            with torch.no_grad():
                wanted = graph.run(feeds)["logits"][0].numpy()
            np.testing.assert_allclose(got, wanted, atol=2e-3)
