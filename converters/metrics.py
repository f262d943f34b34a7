"""How good a student's answers are: classes and tags against labels, embeddings against a reference, texts foreseen,
summaries against references.

Macro averages go over the labels that occur in the data: a label that no example has cannot be right or wrong.
Everything but the calibration error comes from scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .bootstrap import Interval

CALIBRATION_BINS = 15
_MOST_PAIRED = 1000  # embeddings whose similarities are compared pair by pair: half a million pairs


class LabelMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One label. ``support``: examples that have it; ``auc``: one against the rest, None where that has no meaning."""

    label: str
    precision: float
    recall: float
    f1: float
    auc: float | None
    support: int


class CalibrationBin(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions with a confidence in ``(low, high]``: how many, their mean confidence, and how many were right.

    ``confidence`` and ``accuracy`` are shares (0 to 1), both 0 where the bin is empty.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class ClassificationMetrics(msgspec.Struct, frozen=True, kw_only=True, tag="classification", tag_field="kind"):
    """Metrics of ``classify`` (over texts) and ``tag`` (over labelled tokens), all shares from 0 to 1.

    Attributes:
        examples: texts or labelled tokens counted.
        macro_auc: mean area under the ROC curve of one label against the rest; None with fewer than two labels.
        expected_calibration_error: mean distance of confidence from accuracy over 15 bins of equal width, weighted
            by the bins' counts (Guo et al., On Calibration of Modern Neural Networks, 2017).
        confusion: ``confusion[true][predicted]`` counts.
    """

    examples: int
    accuracy: float
    macro_f1: float
    macro_precision: float
    macro_recall: float
    macro_auc: float | None
    expected_calibration_error: float
    labels: tuple[LabelMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: tuple[CalibrationBin, ...]

    @property
    def score(self) -> float:
        """The task's own metric: accuracy."""
        return self.accuracy

    def values(self) -> dict[str, float]:
        """The figures by name, as the manifest's ``quality`` keeps them."""
        named = {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "macro_precision": self.macro_precision,
            "macro_recall": self.macro_recall,
            "macro_auc": self.macro_auc,
            "expected_calibration_error": self.expected_calibration_error,
        }
        return {name: value for name, value in named.items() if value is not None}


class EmbeddingMetrics(msgspec.Struct, frozen=True, kw_only=True, tag="embedding", tag_field="kind"):
    """How near embeddings are to a reference's.

    Attributes:
        examples: texts compared.
        cosine: mean cosine of each embedding with the reference's; None where their widths differ.
        least_cosine: the smallest of these cosines.
        pearson: correlation of the texts' pairwise similarities with the reference's.
        spearman: rank correlation of the same.
    """

    examples: int
    cosine: float | None
    least_cosine: float | None
    pearson: float
    spearman: float

    @property
    def score(self) -> float:
        """The task's own metric: the rank correlation of similarities, which is what search goes by."""
        return self.spearman

    def values(self) -> dict[str, float]:
        """The figures by name, as the manifest's ``quality`` keeps them."""
        named = {
            "cosine": self.cosine,
            "least_cosine": self.least_cosine,
            "pearson": self.pearson,
            "spearman": self.spearman,
        }
        return {name: value for name, value in named.items() if value is not None}


class WritingMetrics(msgspec.Struct, frozen=True, kw_only=True, tag="writing", tag_field="kind"):
    """How well tokens were foreseen.

    Attributes:
        examples: tokens foreseen.
        cross_entropy: mean negative log-likelihood of a token, in nats.
        perplexity: its exponential.
        accuracy: share of tokens that were the likeliest.
        agreement: share of tokens whose likeliest guess is the reference's (the teacher's in float32), or None.
        characters: characters that the tokens stand for, so that students of other vocabularies can be compared.
        bits_per_character: all tokens' negative log-likelihood in bits over ``characters``.
    """

    examples: int
    cross_entropy: float
    perplexity: float
    accuracy: float
    agreement: float | None
    characters: int
    bits_per_character: float

    @property
    def score(self) -> float:
        """The task's own metric: next-token accuracy."""
        return self.accuracy

    def values(self) -> dict[str, float]:
        """The figures by name, as the manifest's ``quality`` keeps them."""
        named = {
            "cross_entropy": self.cross_entropy,
            "perplexity": self.perplexity,
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "bits_per_character": self.bits_per_character,
        }
        return {name: value for name, value in named.items() if value is not None}


class SummaryMetrics(msgspec.Struct, frozen=True, kw_only=True, tag="summaries", tag_field="kind"):
    """How good greedy summaries are, and how well the reference summaries were foreseen.

    Attributes:
        examples: texts summarised.
        scores: figures of the summaries by name with confidence intervals, as
            :func:`~edgescribe.converters.text_metrics.score_texts` gives them.
        cross_entropy: mean negative log-likelihood of a token of the references, in nats; None where that was not
            taken (a baseline that foresees nothing).
        perplexity: its exponential.
        token_accuracy: share of the references' tokens that were the likeliest.
        agreement: share of the summaries that are, letter for letter, the unpruned student's in float32, or None.
    """

    examples: int
    scores: dict[str, Interval]
    cross_entropy: float | None = None
    perplexity: float | None = None
    token_accuracy: float | None = None
    agreement: float | None = None

    @property
    def score(self) -> float:
        """The task's own metric: ROUGE-L, a share."""
        return self.scores["rougeL"].value

    def values(self) -> dict[str, float]:
        """The figures by name, as the manifest's ``quality`` keeps them."""
        named = {name: interval.value for name, interval in self.scores.items()}
        likelihood = {
            "cross_entropy": self.cross_entropy,
            "perplexity": self.perplexity,
            "token_accuracy": self.token_accuracy,
            "agreement": self.agreement,
        }
        return named | {name: value for name, value in likelihood.items() if value is not None}


Metrics: TypeAlias = ClassificationMetrics | EmbeddingMetrics | WritingMetrics | SummaryMetrics


def classification_metrics(
    probabilities: NDArray[np.floating], labels: Sequence[int] | NDArray[np.integer], names: Sequence[str] = ()
) -> ClassificationMetrics:
    """Metrics of predictions against labels.

    Args:
        probabilities: ``[N, L]``, each row a distribution over the labels.
        labels: ``[N]`` class numbers below L; rows with a negative one (unlabelled) are left out.
        names: the L labels' names; their numbers where none are given.

    Raises:
        DataError: no row is labelled, a label is out of range, or a probability is not a number.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    given, truth = np.asarray(probabilities, np.float64), np.asarray(labels)
    given, truth = given[truth >= 0], truth[truth >= 0]
    if not len(truth):
        raise DataError("there is nothing to evaluate on: no example has a label that the student knows")
    count = given.shape[1]
    if truth.max() >= count:
        raise DataError(f"label number {truth.max()} is out of range: the student has {count} labels")
    if not np.isfinite(given).all():
        raise DataError("there are predictions that are not numbers; the student or its engine is broken")
    guesses = given.argmax(axis=1)
    every = list(range(count))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, guesses, labels=every, average=None, zero_division=0.0
    )
    areas = [_area(truth == label, given[:, label]) for label in every]
    present = support > 0
    known = [area for area in areas if area is not None]
    bins = _calibration(given.max(axis=1), guesses == truth)
    return ClassificationMetrics(
        examples=len(truth),
        accuracy=float((guesses == truth).mean()),
        macro_f1=float(f1[present].mean()),
        macro_precision=float(precision[present].mean()),
        macro_recall=float(recall[present].mean()),
        macro_auc=float(np.mean(known)) if known else None,
        expected_calibration_error=sum(
            each.count / len(truth) * abs(each.accuracy - each.confidence) for each in bins
        ),
        labels=tuple(
            LabelMetrics(
                label=str(names[label]) if names else str(label),
                precision=float(precision[label]),
                recall=float(recall[label]),
                f1=float(f1[label]),
                auc=areas[label],
                support=int(support[label]),
            )
            for label in every
        ),
        confusion=tuple(
            tuple(int(value) for value in row) for row in confusion_matrix(truth, guesses, labels=every)
        ),
        calibration=bins,
    )


def embedding_metrics(embeddings: NDArray[np.floating], reference: NDArray[np.floating]) -> EmbeddingMetrics:
    """Metrics of embeddings ``[N, W]`` against a reference's of the same texts, ``[N, W']``; N is 2 or more.

    Pairwise similarities are cosines, of at most the first 1,000 texts.

    Raises:
        DataError: fewer than two texts, not equally many on both sides, or values that are not numbers.
    """
    got, wanted = np.asarray(embeddings, np.float64), np.asarray(reference, np.float64)
    if len(got) != len(wanted) or len(got) < 2:
        raise DataError(f"embeddings of {len(got)} and {len(wanted)} texts: give two or more, the same on both sides")
    if not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        raise DataError("there are embeddings that are not numbers; the student or its engine is broken")
    got, wanted = _unit(got), _unit(wanted)
    cosines = (got * wanted).sum(axis=1) if got.shape == wanted.shape else None
    few = min(len(got), _MOST_PAIRED)
    upper = np.triu_indices(few, 1)
    ours, theirs = (got[:few] @ got[:few].T)[upper], (wanted[:few] @ wanted[:few].T)[upper]
    return EmbeddingMetrics(
        examples=len(got),
        cosine=None if cosines is None else float(cosines.mean()),
        least_cosine=None if cosines is None else float(cosines.min()),
        pearson=_correlation(ours, theirs),
        spearman=_correlation(_ranks(ours), _ranks(theirs)),
    )


def _area(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, scores))


def _calibration(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[CalibrationBin, ...]:
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, CALIBRATION_BINS - 1)
    bins = []
    for place in range(CALIBRATION_BINS):
        inside = places == place
        count = int(inside.sum())
        bins.append(
            CalibrationBin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                count=count,
                confidence=float(confidence[inside].mean()) if count else 0.0,
                accuracy=float(right[inside].mean()) if count else 0.0,
            )
        )
    return tuple(bins)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's; two constant sequences count as equal, a constant one and another as unrelated."""
    if a.std() < 1e-12 or b.std() < 1e-12:
        return 1.0 if np.allclose(a, b, rtol=0, atol=1e-9) else 0.0
    return float(np.corrcoef(a, b)[0, 1])
