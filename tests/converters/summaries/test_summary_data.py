"""Texts with summaries: rows read and refused, tokens of sources and targets, prefixes, the teacher's numbers."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.converters.conversion_data import examples_of, read_texts
from edgescribe.converters.distillation import UNLABELLED
from edgescribe.converters.summary_data import (
    encode_sources,
    encode_summaries,
    end_id,
    make_summary_examples,
    prefix_of,
    start_ids,
    with_prefix,
)
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.converters.training_data import collate
from edgescribe.errors import DataError, StudentError
from hypothesis import given
from hypothesis import strategies as st

TEXT, SUMMARY = "It was cold. Today Anna often buys tea outside.", "Anna buys tea outside"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv"])
def test_rows_are_read_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    content = json.dumps({"text": TEXT, "summary": SUMMARY, "id": 7}) + "\n"
    if name.endswith(".csv"):
        content = f'id,summary,text\n7,{SUMMARY},"{TEXT}"\n'
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    texts = read_texts(tmp_path / name, "summarize")
    assert (texts.texts, texts.summaries, texts.labels) == ([TEXT], [SUMMARY], [])


def test_bad_rows_are_named_and_too_many_stop_it(tmp_path: Path) -> None:
    path, said = tmp_path / "rows.jsonl", list[str]()
    rows: list[dict[str, object]] = [{"text": TEXT, "summary": SUMMARY}] * 300
    rows[4], rows[9] = {"text": TEXT}, {"text": TEXT, "summary": " "}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_texts(path, "summarize", said.append).texts) == 298
    assert "rows.jsonl:5: no 'summary'" in said[0]
    assert "rows.jsonl:10: 'summary' is empty" in said[0]
    path.write_text("".join(json.dumps({"text": TEXT, "label": "x"}) + "\n" for _ in range(30)))
    with pytest.raises(DataError, match="'summary'"):
        read_texts(path, "summarize")


def test_parts_keep_texts_and_summaries_together(evaluation_texts: Any) -> None:
    part = evaluation_texts.part([3, 1])
    assert part.texts == [evaluation_texts.texts[3], evaluation_texts.texts[1]]
    assert part.summaries == [evaluation_texts.summaries[3], evaluation_texts.summaries[1]]


def test_words_for_a_vocabulary_are_what_is_read_and_written(summarizer: Any, evaluation_texts: Any) -> None:
    words = evaluation_texts.part([0]).words(summarizer)
    assert words == ["summarize: " + evaluation_texts.texts[0], evaluation_texts.summaries[0]]


def test_an_example_is_what_the_halves_read_and_are_to_give(summarizer: Any) -> None:
    (example,) = make_summary_examples(summarizer, [TEXT], [SUMMARY])
    assert summarizer.tokenizer.decode(example.source.tolist(), skip_special_tokens=False).startswith("summarize: It")
    assert example.source[-1] == end_id(summarizer)
    assert example.ids[0] == start_ids(summarizer)[0] == 0
    assert example.labels.tolist() == [*example.ids[1:].tolist(), end_id(summarizer)]
    assert summarizer.tokenizer.decode(example.ids.tolist()) == SUMMARY
    assert example.tokens == len(example.source) + len(example.ids)


def test_long_ones_are_cut_the_source_keeping_its_end_the_summary_losing_it(summarizer: Any) -> None:
    (example,) = make_summary_examples(summarizer, [TEXT], [SUMMARY], None, max_tokens=6, summary_tokens=4)
    whole = summarizer.tokenizer.encode("summarize: " + TEXT).ids
    assert example.source.tolist() == [*whole[:5], end_id(summarizer)]
    assert len(example.ids) == len(example.labels) == 3
    assert end_id(summarizer) not in example.labels.tolist()


def test_tokens_that_generation_forces_teach_nothing(summarizer: Any) -> None:
    bart = replace(summarizer, generation={"decoder_start_token_id": 1, "forced_bos_token_id": 5, "eos_token_id": 1})
    assert start_ids(bart) == (1, 5)
    (example,) = make_summary_examples(bart, [TEXT], [SUMMARY])
    assert example.ids[:2].tolist() == [1, 5]
    assert example.labels[0] == UNLABELLED
    assert example.labels[1:].tolist() == [*example.ids[2:].tolist(), 1]


def test_what_says_not_how_summaries_start_or_end_is_refused(summarizer: Any) -> None:
    config = {name: value for name, value in summarizer.config.items() if name != "decoder_start_token_id"}
    with pytest.raises(StudentError, match="decoder_start_token_id"):
        start_ids(replace(summarizer, config={**config, "model_type": "bart"}, generation={}))
    endless = replace(summarizer, config={**config, "eos_token_id": None}, generation={}, tokenizer_config={})
    with pytest.raises(StudentError, match="never end"):
        end_id(endless)


def test_a_prefix_stands_where_pipelines_look_for_it(summarizer: Any) -> None:
    other = with_prefix(summarizer, "in short: ")
    assert other.config["task_specific_params"]["summarization"]["prefix"] == "in short: "
    assert (prefix_of(other), prefix_of(summarizer)) == ("in short: ", "summarize: ")
    assert with_prefix(summarizer, None) is summarizer
    assert prefix_of(with_prefix(summarizer, "")) == ""
    assert prefix_of(replace(summarizer, config={**summarizer.config, "task_specific_params": None})) == ""


def test_the_teacher_reads_the_same_tokens_by_its_own_numbers(summarizer: Any, trimmed: Any) -> None:
    assert trimmed.shape.vocabulary < summarizer.shape.vocabulary
    (example,) = make_summary_examples(trimmed, [TEXT], [SUMMARY], summarizer)
    theirs = summarizer.tokenizer.encode("summarize: " + TEXT).ids
    assert example.source.tolist() != theirs
    known = [trimmed.tokenizer.id_to_token(number) for number in example.source.tolist()]
    assert known == [summarizer.tokenizer.id_to_token(number) for number in example.teacher_source.tolist()]
    assert example.teacher_ids[0] == 0


def test_a_teacher_that_lacks_a_token_is_refused(summarizer: Any, trimmed: Any) -> None:
    with pytest.raises(StudentError, match="does not know"):
        make_summary_examples(summarizer, [TEXT], [SUMMARY], trimmed)


def test_padding_changes_nothing(summarizer: Any, evaluation_texts: Any) -> None:
    examples = examples_of(evaluation_texts.part(range(4)), summarizer, summarizer)
    graph = graph_of(summarizer).eval()
    batch = collate(examples, summarizer, summarizer)
    together = graph.run(batch.feeds)["logits"].detach()
    assert batch.teacher_feeds is not None
    np.testing.assert_array_equal(batch.feeds["source_ids"], batch.teacher_feeds["source_ids"])
    for row, example in enumerate(examples):
        alone = graph.run(collate([example], summarizer, None).feeds)["logits"][0, : len(example.ids)].detach()
        np.testing.assert_allclose(together[row, : len(example.ids)], alone, atol=2e-4)
        known = batch.labels[row] != UNLABELLED
        assert batch.labels[row][known].tolist() == example.labels.tolist()


@given(text=st.text(max_size=60), summary=st.text(max_size=30), most=st.integers(4, 12))
def test_any_text_makes_an_example(summarizer: Any, text: str, summary: str, most: int) -> None:
    (source,) = encode_sources(summarizer, [text], most)
    (target,) = encode_summaries(summarizer, [summary], most)
    assert 1 <= len(source) <= most
    assert source[-1] == 1
    assert 2 <= len(target) <= most
    assert target[0] == 0
