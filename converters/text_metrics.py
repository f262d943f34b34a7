"""How good written texts are: against references, against their sources, with confidence intervals.

One call for any task that writes (summaries, translations, answers)::

    scores = score_texts(predictions, references, sources)
    print(scores["rougeL"].value, scores["rougeL"].low, scores["rougeL"].high)

From packages that others score with: rouge-score (ROUGE-1, -2, -L), sacrebleu (BLEU, chrF, TER), nltk (METEOR);
BERTScore by an encoder in a local folder. Nothing is fetched. Figures that have no value (the share of wrong numbers
where there are no numbers) are left out.

An empty text is a text like any other: with no words to be right it scores 0, except that an empty prediction for an
empty reference is right in ``f1`` and its like.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .bootstrap import CONFIDENCE, RESAMPLES, Interval, bootstrap_interval, ratio
from .copying import copied_ngrams, fragments
from .faithfulness import entities
from .meteor import meteor_scorer
from .words import without_spaces, words

COPIED_NGRAMS = (1, 2, 3, 4)

_MEANINGS = {
    "rouge1": "share: words that prediction and reference have in common, F-measure; higher is better",
    "rouge2": "share: pairs of words that prediction and reference have in common, F-measure; higher is better",
    "rougeL": "share: longest sequence of words that both have in their order, F-measure; higher is better",
    "bleu": "points: precision of runs of 1 to 4 words over all texts, with a penalty for brevity; higher is better",
    "chrf": "points: runs of 1 to 6 characters in common, F2 over all texts; higher is better",
    "ter": "points: edits and moves of words that make the reference of the prediction, of 100 words; lower is better",
    "meteor": "share: words in common by form or stem, in like order, recall weighing 9 times; higher is better",
    "precision": "share: the prediction's words that the reference has; higher is better",
    "recall": "share: the reference's words that the prediction has; higher is better",
    "f1": "share: harmonic mean of precision and recall of words; higher is better",
    "bertscore_precision": "share: mean cosine of the prediction's tokens with the reference's; higher is better",
    "bertscore_recall": "share: mean cosine of the reference's tokens with the prediction's; higher is better",
    "bertscore_f1": "share: harmonic mean of BERTScore's precision and recall; higher is better",
    "compression": "ratio: words of the sources for one word of the predictions; neither direction is better",
    "coverage": "share: the prediction's words that stand in runs copied from its source; neither direction is better",
    "density": "words: mean length of the copied run that a predicted word stands in; neither direction is better",
    "entity_faithfulness": "share: the predictions' numbers, dates and names that their sources have; higher is better",
    "number_faithfulness": "share: the predictions' numbers and dates that their sources have; higher is better",
    "name_faithfulness": "share: the predictions' names that their sources have; higher is better",
    "length": "words: mean length of a prediction; neither direction is better",
}
for _size in COPIED_NGRAMS:
    _MEANINGS[f"copied_{_size}grams"] = (
        f"share: the predictions' {f'runs of {_size} ' if _size > 1 else ''}words that their sources have; "
        "neither direction is better"
    )

_Row = NDArray[np.float64]
_Figure = Callable[[_Row], float | None]


class _Tokenizer:
    """Words for rouge-score, which asks an object of this shape for them."""

    def __init__(self, stem: bool) -> None:
        self._stem: Callable[[str], str] | None = None
        if stem:
            from nltk.stem.porter import PorterStemmer

            self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        found = words(text)
        return found if self._stem is None else [self._stem(word) if len(word) > 3 else word for word in found]


def score_texts(
    predictions: Sequence[str],
    references: Sequence[str] | None,
    sources: Sequence[str] | None = None,
    *,
    stem: bool = False,
    encoder: str | os.PathLike[str] | None = None,
    encoder_layer: int = -1,
    wordnet: str | os.PathLike[str] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Interval]:
    """Score texts, each with its reference, its source, or both.

    Args:
        predictions: what was written.
        references: what should have been written, one for each; None leaves these figures out.
        sources: what each was written from; None leaves compression, copying and faithfulness out.
        stem: whether ROUGE compares English words by Porter's stems (``use_stemmer`` of rouge-score).
        encoder: folder of the encoder for BERTScore; None leaves it out.
        encoder_layer: see :class:`~edgescribe.converters.bert_score.BertScorer`.
        wordnet: folder of WordNet for METEOR; None leaves synonyms out (:mod:`~edgescribe.converters.meteor`).
        resamples: draws of the bootstrap.
        confidence: share of the draws between ``low`` and ``high``.
        seed: of the draws.

    Returns:
        Figures by name, each with value, bounds, unit and meaning (:class:`~edgescribe.converters.bootstrap.Interval`):
        ``rouge1``, ``rouge2``, ``rougeL``, ``bleu``, ``chrf``, ``ter``, ``meteor``, ``precision``, ``recall``, ``f1``,
        ``bertscore_*``; with sources ``compression``, ``coverage``, ``density``, ``copied_1grams`` to
        ``copied_4grams``, ``entity_faithfulness``, ``number_faithfulness``, ``name_faithfulness``; always ``length``.

    Raises:
        DataError: there are no texts, or not as many of one kind as of the other; or no WordNet in its folder.
        StudentError: the encoder cannot be loaded.
        UsageError: no resamples, or a confidence that is no share.
    """
    if not predictions:
        raise DataError("there is nothing to score: no predictions were given")
    for name, others in (("references", references), ("sources", sources)):
        if others is not None and len(others) != len(predictions):
            raise DataError(f"{len(predictions)} predictions and {len(others)} {name}: give one for each")
    if isinstance(predictions, str) or isinstance(references, str) or isinstance(sources, str):
        raise DataError("a single text was given where a sequence of texts belongs; put it into a list")
    interval = partial(bootstrap_interval, resamples=resamples, confidence=confidence, seed=seed)
    found: dict[str, Interval] = {}

    def add(name: str, rows: Any, figure: _Figure = ratio) -> None:
        unit, _, meaning = _MEANINGS[name].partition(": ")
        made = interval(np.asarray(rows, np.float64), figure, unit=unit, meaning=meaning)
        if made is not None:
            found[name] = made

    if references is not None:
        _against_references(add, predictions, references, stem, wordnet)
        if encoder is not None:
            from .bert_score import BertScorer

            table = BertScorer(encoder, encoder_layer).score(predictions, references)
            for column, name in enumerate(("precision", "recall", "f1")):
                add(f"bertscore_{name}", _means(table[:, column]))
    if sources is not None:
        _against_sources(add, predictions, sources)
    add("length", _means(len(words(text)) for text in predictions))
    return found


_Add = Callable[..., None]


def _against_references(
    add: _Add, predictions: Sequence[str], references: Sequence[str], stem: bool, wordnet: str | os.PathLike[str] | None
) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    rouge = RougeScorer(kinds, tokenizer=_Tokenizer(stem))
    scored = [rouge.score(target, text) for text, target in zip(predictions, references, strict=True)]
    for kind in kinds:
        add(kind, _means(score[kind].fmeasure for score in scored))
    _corpus_metrics(add, predictions, references)
    pairs = [(words(text), words(target)) for text, target in zip(predictions, references, strict=True)]
    meteor = meteor_scorer(wordnet)
    add("meteor", _means(meteor(target, text) for text, target in pairs))
    overlaps = [_overlap(text, target) for text, target in pairs]
    for column, name in enumerate(("precision", "recall", "f1")):
        add(name, _means(overlap[column] for overlap in overlaps))


def _corpus_metrics(add: _Add, predictions: Sequence[str], references: Sequence[str]) -> None:
    """sacrebleu's; its statistics of each text are summed and made a score as its own bootstrap does."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    script = without_spaces([*references, *predictions])
    metrics = {
        "bleu": BLEU(tokenize={"": "13a", "han": "zh", "other": "char"}[script], force=True),
        "chrf": CHRF(),
        "ter": TER(normalized=bool(script), asian_support=bool(script)),
    }
    for name, metric in metrics.items():
        rows = metric._extract_corpus_statistics(list(predictions), [list(references)])

        def figure(sums: _Row, metric: Any = metric) -> float:
            return float(metric._compute_score_from_stats(sums.tolist()).score)

        add(name, rows, figure)


def _against_sources(add: _Add, predictions: Sequence[str], sources: Sequence[str]) -> None:
    lengths, coverage, density, checked = [], [], [], []
    copied: dict[int, list[tuple[int, int]]] = {size: [] for size in COPIED_NGRAMS}
    for text, source in zip(predictions, sources, strict=True):
        own, there = words(text), words(source)
        lengths.append((len(there), len(own)))
        runs = fragments(own, there)
        # an empty text copies nothing, and is no text of which it could be said
        coverage.append((sum(runs) / max(1, len(own)), bool(own)))
        density.append((sum(run * run for run in runs) / max(1, len(own)), bool(own)))
        for size in COPIED_NGRAMS:
            copied[size].append(copied_ngrams(own, there, size))
        checked.append(entities(text, source))
    add("compression", lengths)
    add("coverage", coverage)
    add("density", density)
    for size in COPIED_NGRAMS:
        add(f"copied_{size}grams", copied[size])
    for name, kinds in (("entity", ("number", "date", "name")), ("number", ("number", "date")), ("name", ("name",))):
        rows = []
        for each in checked:
            supported = [entity.supported for entity in each if entity.kind in kinds]
            rows.append((sum(supported), len(supported)))
        add(f"{name}_faithfulness", rows)


def _means(values: Iterable[float]) -> NDArray[np.float64]:
    """Rows ``[N, 2]`` whose ratio of sums is the mean."""
    every = np.array(list(values), np.float64)
    return np.stack([every, np.ones_like(every)], axis=1)


def _overlap(prediction: Sequence[str], reference: Sequence[str]) -> tuple[float, float, float]:
    """Precision, recall and F1 of words, each counted as often as it occurs (as SQuAD's evaluation does)."""
    if not prediction or not reference:
        right = float(len(prediction) == len(reference))
        return right, right, right
    common = sum((Counter(prediction) & Counter(reference)).values())
    precision, recall = common / len(prediction), common / len(reference)
    return precision, recall, 2 * precision * recall / (precision + recall) if common else 0.0
