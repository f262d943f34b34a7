"""Metrics of texts against figures worked out by hand, and on texts that are hardly any."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edgescribe.converters.bootstrap import bootstrap_interval, ratio
from edgescribe.converters.copying import copied_ngrams, fragments
from edgescribe.converters.meteor import meteor_scorer
from edgescribe.converters.text_metrics import score_texts
from edgescribe.converters.words import without_spaces, words
from edgescribe.errors import DataError, UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

SHARES = ("rouge1", "rouge2", "rougeL", "meteor", "precision", "recall", "f1", "coverage", "copied_4grams")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def values(*texts: list[str] | None, **options: object) -> dict[str, float]:
    return {name: found.value for name, found in score_texts(*texts, resamples=20, **options).items()}  # type: ignore[arg-type]


def test_figures_by_hand() -> None:
    found = values(["the cat sat on the mat"], ["The cat lay on a mat."], ["Yesterday the cat sat down on the mat."])
    # in common: the, cat, on, mat; in pairs: the cat
    assert found["rouge1"] == found["f1"] == pytest.approx(4 / 6)
    assert found["rouge2"] == pytest.approx(1 / 5)
    assert found["rougeL"] == pytest.approx(4 / 6)
    # TER takes "mat." for a word: three are to be changed
    assert found["ter"] == pytest.approx(100 * 3 / 6)
    # four words in four runs: nltk pairs the reference's "the" with the prediction's last one
    assert found["meteor"] == pytest.approx((1 - 0.5 * (4 / 4) ** 3) * 4 / 6)
    assert found["compression"] == pytest.approx(8 / 6)
    assert (found["coverage"], found["density"]) == (1, (3 * 3 + 3 * 3) / 6)
    assert found["copied_1grams"] == 1
    assert found["copied_2grams"] == pytest.approx(4 / 5)
    assert found["length"] == 6


def test_what_is_equal_scores_fully() -> None:
    text = ["A small network tool that watches four routers."]
    found = values(text, text, text)
    for name in SHARES:
        assert found[name] == pytest.approx(1, abs=0.01), name
    assert (found["bleu"], found["chrf"], found["ter"]) == pytest.approx((100, 100, 0))


def test_corpus_figures_are_sacrebleus_own() -> None:
    import sacrebleu

    predictions = ["the cat sat on the mat today", "a small tool for networks and routers", "it"]
    references = ["the cat sat on a mat", "small tools for networks and for routers", "they"]
    found = values(predictions, references)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(predictions, [references]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(predictions, [references]).score)
    assert found["ter"] == pytest.approx(sacrebleu.corpus_ter(predictions, [references]).score)


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_of_ascii_is_the_packages_own(stem: bool) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    prediction, reference = "Running dogs_and cats' toys; 3.5 cars!", "A dog ran, cats and toys: 3 5 running cars"
    theirs = RougeScorer(["rouge1", "rougeL"], use_stemmer=stem).score(reference, prediction)
    found = values([prediction], [reference], stem=stem)
    assert found["rouge1"] == pytest.approx(theirs["rouge1"].fmeasure)
    assert found["rougeL"] == pytest.approx(theirs["rougeL"].fmeasure)


def test_chinese_is_scored_by_characters() -> None:
    found = values(["会议在三月举行"], ["会议将在三月举行"], ["他说会议将在三月举行。"])
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx(7 / 8)
    assert found["rougeL"] == pytest.approx(14 / 15)
    assert found["ter"] == pytest.approx(100 / 8)
    assert found["bleu"] > 50
    assert found["length"] == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5, snake_case!", ["it", "s", "3", "5", "snake", "case"]),
        ("Größe straße", ["größe", "straße"]),
        ("用Python写的", ["用", "python", "写", "的"]),
        ("ผู้ดี", ["ผู้", "ดี"]),
        ("が", ["が"]),
        ("หา", ["ห", "า"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        (" \n", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_how_texts_are_written() -> None:
    assert without_spaces(["a router of 华为"]) == ""
    assert without_spaces(["会议在三月举行 ok"]) == "han"
    assert without_spaces(["これはテストです"]) == "other"
    assert without_spaces(["", "123"]) == ""


@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "a word"), ("a word", ""), ("", ""), ("one", "one"), ("...", "!"), ("字", "字")]
)
def test_texts_that_are_hardly_any(prediction: str, reference: str) -> None:
    found = score_texts([prediction], [reference], [reference])
    assert all(math.isfinite(each.value) and each.low == each.value == each.high for each in found.values())
    assert {"rougeL", "bleu", "chrf", "ter", "meteor", "f1", "length"} <= set(found)
    assert found["f1"].value == float(words(prediction) == words(reference))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), min_size=1, max_size=4))
def test_any_text_is_scored(pairs: list[tuple[str, str]]) -> None:
    predictions, references = map(list, zip(*pairs, strict=True))
    found = score_texts(predictions, references, references, resamples=5)
    for name, each in found.items():
        assert math.isfinite(each.value)
        assert each.low <= each.value <= each.high
        if each.unit == "share":
            assert -1e-9 <= each.value <= 1 + 1e-9, name
        assert each.meaning.endswith(("is better", "are better"))


def test_figures_without_value_are_left_out() -> None:
    found = score_texts(["plain words here"], None, ["plain words"])
    assert "entity_faithfulness" not in found
    assert "rougeL" not in found
    assert {"compression", "coverage", "copied_3grams", "length"} <= set(found)
    assert "copied_4grams" not in found


def test_faithfulness_over_texts() -> None:
    summaries = ["We pay 5 euros to Anna Bell.", "We met in Rome in 2020."]
    found = values(summaries, None, ["5 euros, says Bell.", "Rome, 2021"])
    assert found["number_faithfulness"] == pytest.approx(1 / 2)
    assert found["name_faithfulness"] == pytest.approx(1 / 2)
    assert found["entity_faithfulness"] == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "nothing to score"),
        (["a"], ["a", "b"], "1 predictions and 2 references"),
        ("a", "b", "put it into a list"),
    ],
)
def test_what_cannot_be_scored_is_refused(predictions: list[str], references: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_texts(predictions, references)


# Intervals


def test_the_interval_narrows_with_more_texts_and_covers_the_mean() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for count in (25, 400):
        rows = np.stack([generator.normal(5, 2, count), np.ones(count)], axis=1)
        found = bootstrap_interval(rows, ratio, unit="ratio", meaning="")
        assert found is not None
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
        # the normal approximation of the mean's interval
        assert widths[-1] == pytest.approx(2 * 1.96 * 2 / count**0.5, rel=0.35)
    assert widths[1] < widths[0] / 2


def test_the_same_seed_draws_the_same() -> None:
    texts = [f"a word {number}" for number in range(8)]
    others = [f"a word {number // 2}" for number in range(8)]
    once, again, other = (score_texts(texts, others, seed=seed, resamples=30) for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_a_wider_confidence_is_wider() -> None:
    rows = np.stack([np.arange(30.0), np.ones(30)], axis=1)
    narrow, wide = (bootstrap_interval(rows, ratio, unit="", meaning="", confidence=share) for share in (0.5, 0.99))
    assert narrow is not None
    assert wide is not None
    assert wide.low < narrow.low < narrow.high < wide.high


def test_many_texts_are_drawn_in_pieces() -> None:
    rows = np.ones((1 << 19, 2))
    found = bootstrap_interval(rows, ratio, unit="", meaning="", resamples=5)
    assert found is not None
    assert (found.low, found.high) == (1, 1)


def test_no_texts_have_no_interval_and_no_draws_are_refused() -> None:
    assert bootstrap_interval(np.zeros((0, 2)), ratio, unit="", meaning="") is None
    assert bootstrap_interval(np.zeros((3, 2)), ratio, unit="", meaning="") is None
    for options in ({"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}):
        with pytest.raises(UsageError):
            bootstrap_interval(np.ones((3, 2)), ratio, unit="", meaning="", **options)  # type: ignore[arg-type]


# Copying


def test_the_longest_run_counts() -> None:
    source = "a b x a b c d".split()  # noqa: SIM905
    assert fragments("a b c y d".split(), source) == [3, 1]  # noqa: SIM905
    assert fragments([], source) == []
    assert fragments(["a"], []) == []
    assert copied_ngrams(["a", "b", "d"], source, 2) == (1, 2)
    assert copied_ngrams(["a"], source, 2) == (0, 0)


# METEOR


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """WordNet's files with one noun of two names, as Debian installs them: without the list of lexicographers."""
    for part in ("adj", "adv", "noun", "verb"):
        (tmp_path / f"{part}.exc").write_text("")
        for kind in ("index", "data"):
            (tmp_path / f"{kind}.{part}").write_text("  1 a licence\n")
    offset = (tmp_path / "data.noun").stat().st_size
    with (tmp_path / "data.noun").open("a") as file:
        file.write(f"{offset:08} 03 n 02 car 0 auto 0 000 | four wheels  \n")
    with (tmp_path / "index.noun").open("a") as file:
        file.write("".join(f"{word} n 1 0 1 0 {offset:08}  \n" for word in ("auto", "car")))
    return tmp_path


def test_meteor_matches_stems_and_with_wordnet_synonyms(wordnet: Path) -> None:
    reference, prediction = ["my", "car", "stopped"], ["my", "auto", "stops"]
    without, with_synonyms = meteor_scorer(), meteor_scorer(wordnet)
    assert without(reference, prediction) == pytest.approx((1 - 0.5 * (2 / 2) ** 3) * 2 / 3)
    assert with_synonyms(reference, prediction) == pytest.approx(1 - 0.5 * (1 / 3) ** 3)
    assert values(["my auto stops"], ["my car stopped"], wordnet=wordnet)["meteor"] > 0.9


def test_a_folder_without_wordnet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wordnet-base"):
        meteor_scorer(tmp_path)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was to be fetched")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(f"socket.socket.{name}", refuse)
    student = Path(__file__).parents[2] / "samples/debian_topics/student"
    assert score_texts(["a network tool"], ["a tool for networks"], ["networks"], encoder=student)["bertscore_f1"].value
