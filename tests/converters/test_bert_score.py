"""BERTScore with the sample student's encoder, and with one of random weights checked by hand."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from edgescribe.converters.bert_score import BertScorer
from edgescribe.converters.text_metrics import score_texts
from edgescribe.errors import StudentError, UsageError

STUDENT = Path(__file__).parents[2] / "samples/debian_topics/student"


@pytest.fixture(scope="module")
def scorer() -> BertScorer:
    return BertScorer(STUDENT)


def test_equal_texts_score_one_and_nothing_scores_nothing(scorer: BertScorer) -> None:
    texts = ["plays chess against a computer", "a", "会议在三月举行"]
    assert scorer.score(texts, texts) == pytest.approx(1, abs=1e-5)
    assert scorer.score(["", "a", ""], ["a", "", ""]).tolist() == [[0, 0, 0]] * 3
    assert scorer.score([], []).shape == (0, 3)


def test_nearer_texts_score_higher(scorer: BertScorer) -> None:
    reference = "a library for fast matrix products in python"
    texts = ["a python library that multiplies matrices fast", "fonts of the german railway"]
    near, far = scorer.score(texts, [reference] * 2)[:, 2]
    assert near > far + 0.05


def test_precision_and_recall_change_places(scorer: BertScorer) -> None:
    one, two = ["a network tool", "x"], ["watches what routers send each other, packet by packet", "plays chess"]
    there, back = scorer.score(one, two), scorer.score(two, one)
    assert there[:, 0] == pytest.approx(back[:, 1], abs=1e-5)
    assert there[:, 1] == pytest.approx(back[:, 0], abs=1e-5)


def test_scores_do_not_depend_on_what_else_is_scored(scorer: BertScorer) -> None:
    one, two = ["a network tool"], ["shows which router is slow"]
    others = ["word " * count for count in range(1, 120, 7)]
    together = scorer.score(one + others, two + others[::-1])
    assert together[:1] == pytest.approx(scorer.score(one, two), abs=1e-4)


def test_by_hand(scorer: BertScorer) -> None:
    from transformers import AutoModel, AutoTokenizer

    one, two = "a network tool", "shows which router is slow"
    tokenizer, model = AutoTokenizer.from_pretrained(STUDENT), AutoModel.from_pretrained(STUDENT, dtype=torch.float32)
    vectors = []
    for text in (one, two):
        with torch.no_grad():
            hidden = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().numpy()
        vectors.append(hidden / np.linalg.norm(hidden, axis=1, keepdims=True))
    cosines = vectors[0] @ vectors[1].T
    precision, recall = cosines.max(axis=1)[1:-1].mean(), cosines.max(axis=0)[1:-1].mean()
    expected = [precision, recall, 2 * precision * recall / (precision + recall)]
    assert scorer.score([one], [two])[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_long_texts_are_compared_by_their_beginnings(scorer: BertScorer) -> None:
    beginning = "a tool for networks " * 200
    assert scorer.score([beginning + "and chess"], [beginning + "or fonts"])[0, 2] == pytest.approx(1, abs=1e-5)


def test_among_the_other_metrics(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        found = score_texts(["a network tool"], ["a tool for networks"], encoder=STUDENT, encoder_layer=1)
    assert 0.5 < found["bertscore_f1"].value <= 1
    assert found["bertscore_f1"].unit == "share"
    assert not caplog.records
    assert capsys.readouterr().err == ""


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"no config\.json"):
        BertScorer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(StudentError, match="cannot be loaded"):
        BertScorer(tmp_path)
    with pytest.raises(UsageError, match="not 99"):
        BertScorer(STUDENT, 99)
