"""Metrics against figures worked out by hand, against scipy, and on wild input."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from edgescribe.converters.metrics import (
    ClassificationMetrics,
    EmbeddingMetrics,
    Metrics,
    classification_metrics,
    embedding_metrics,
)
from edgescribe.errors import DataError
from hypothesis import given, settings
from hypothesis import strategies as st


def sure(guesses: list[int], labels: int, confidence: float = 0.9) -> np.ndarray:
    rest = (1 - confidence) / (labels - 1)
    rows = np.full((len(guesses), labels), rest)
    rows[np.arange(len(guesses)), guesses] = confidence
    return rows


def test_figures_by_hand() -> None:
    truth, guesses = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0]
    found = classification_metrics(sure(guesses, 3), truth, ("a", "b", "c"))
    assert found.examples == 6
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.confusion == ((2, 1, 0), (0, 2, 0), (1, 0, 0))
    assert [label.support for label in found.labels] == [3, 2, 1]
    assert [label.precision for label in found.labels] == pytest.approx([2 / 3, 2 / 3, 0])
    assert [label.recall for label in found.labels] == pytest.approx([2 / 3, 1, 0])
    assert [label.f1 for label in found.labels] == pytest.approx([2 / 3, 0.8, 0])
    assert found.macro_f1 == pytest.approx((2 / 3 + 0.8) / 3)
    assert found.macro_precision == pytest.approx(4 / 9)
    assert found.macro_recall == pytest.approx(5 / 9)
    # All predictions are 90 % sure and 4 of 6 are right.
    assert found.expected_calibration_error == pytest.approx(0.9 - 4 / 6)
    # Of label b, the two texts that have it have the highest score, one other shares it.
    assert found.labels[1].auc == pytest.approx(7 / 8)


def test_calibration_error_weighs_bins_by_their_counts() -> None:
    rows = np.concatenate([sure([0] * 8, 2, 0.95), sure([0] * 2, 2, 0.55)])
    truth = [0] * 6 + [1] * 2 + [0, 1]
    found = classification_metrics(rows, truth)
    assert found.expected_calibration_error == pytest.approx(0.8 * (0.95 - 0.75) + 0.2 * (0.55 - 0.5))
    assert [each.count for each in found.calibration if each.count] == [2, 8]
    assert len(found.calibration) == 15


def test_labels_without_examples_do_not_count_in_means() -> None:
    found = classification_metrics(sure([0, 1, 0, 1], 5), [0, 1, 0, 1])
    assert found.macro_f1 == found.macro_precision == found.macro_recall == found.macro_auc == 1.0
    assert [label.support for label in found.labels] == [2, 2, 0, 0, 0]
    assert found.labels[4].auc is None


def test_a_label_predicted_but_absent_costs_recall_alone() -> None:
    found = classification_metrics(sure([2, 1], 3), [0, 1])
    assert found.macro_recall == pytest.approx(0.5)
    assert found.labels[2].precision == 0


def test_one_label_in_the_data_has_no_area() -> None:
    found = classification_metrics(sure([0, 0], 2), [0, 0])
    assert found.macro_auc is None
    assert "macro_auc" not in found.values()


def test_unlabelled_rows_are_left_out() -> None:
    found = classification_metrics(sure([0, 1, 1], 2), [0, -100, 0])
    assert found.examples == 2
    assert found.accuracy == 0.5


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (sure([0], 2), [-100], "nothing to evaluate"),
        (np.zeros((0, 2)), [], "nothing to evaluate"),
        (sure([0], 2), [2], "out of range"),
        (np.array([[np.nan, 1.0]]), [0], "not numbers"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(probabilities: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        classification_metrics(probabilities, labels)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_shares_stay_shares(labels: int, rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(labels, 0.3), rows)
    truth = generator.integers(0, labels, rows)
    found = classification_metrics(probabilities, truth)
    assert all(0 <= value <= 1 for value in found.values().values())
    assert np.array(found.confusion).sum() == rows == sum(each.count for each in found.calibration)
    assert np.trace(np.array(found.confusion)) == round(found.accuracy * rows)
    again = msgspec.json.decode(msgspec.json.encode(found), type=Metrics)
    assert again == found


def test_embeddings_that_are_equal() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    found = embedding_metrics(vectors * 3, vectors)
    assert found.values() == pytest.approx({"cosine": 1, "least_cosine": 1, "pearson": 1, "spearman": 1})
    assert isinstance(msgspec.json.decode(msgspec.json.encode(found), type=Metrics), EmbeddingMetrics)


def test_turned_embeddings_keep_similarities() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(20, 8))
    turn, _ = np.linalg.qr(generator.normal(size=(8, 8)))
    found = embedding_metrics(vectors @ turn, vectors)
    assert found.spearman == pytest.approx(1)
    assert found.cosine is not None
    assert found.cosine < 0.5


def test_correlations_as_scipy_has_them() -> None:
    from scipy import stats

    generator = np.random.default_rng(3)
    ours, theirs = generator.integers(-2, 3, (12, 4)) + 0.1, generator.integers(-2, 3, (12, 6)) + 0.1
    found = embedding_metrics(ours, theirs)
    upper = np.triu_indices(12, 1)
    similar = [(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (ours, theirs)]
    a, b = ((x @ x.T)[upper] for x in similar)
    assert found.cosine is None
    assert found.pearson == pytest.approx(stats.pearsonr(a, b)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(a, b)[0], abs=0.02)


@pytest.mark.parametrize(("count", "other"), [(1, 1), (3, 2), (0, 0)])
def test_too_few_embeddings_are_refused(count: int, other: int) -> None:
    with pytest.raises(DataError, match="embeddings of"):
        embedding_metrics(np.ones((count, 4)), np.ones((other, 4)))


def test_broken_embeddings_are_refused() -> None:
    with pytest.raises(DataError, match="not numbers"):
        embedding_metrics(np.full((2, 4), np.nan), np.ones((2, 4)))


def test_embeddings_all_alike_are_unrelated_to_ones_that_differ() -> None:
    found = embedding_metrics(np.ones((5, 4)), np.random.default_rng(0).normal(size=(5, 4)))
    assert found.spearman == 0.0


def test_kind_is_told_in_json() -> None:
    found = classification_metrics(sure([0, 1], 2), [0, 1])
    assert msgspec.json.decode(msgspec.json.encode(found))["kind"] == "classification"
    assert isinstance(found, ClassificationMetrics)
