"""TF-IDF with logistic regression on the topic data: what a student has to beat.

::

    python benchmarks/tfidf_baseline.py samples/debian_topics [--json] [--random-split]

With ``--random-split`` the rows are pooled and drawn anew, one in ten for validation and one in six to test, without
regard to source packages and shared paragraphs: the easier question that figures elsewhere often answer.
Fits on ``train.jsonl[.gz]``, picks features and strength by macro F1 on ``validation.jsonl[.gz]``, and scores
``test.jsonl[.gz]`` once. Needs scikit-learn (the extra ``[convert]`` brings it).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

NGRAMS = ((1, 1), (1, 2))
STRENGTHS = (3.0, 10.0, 30.0)


def read(folder: Path, split: str) -> tuple[list[str], list[str]]:
    """Texts and labels of one split, from the plain or the compressed file."""
    plain, packed = folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"
    if plain.exists():
        lines = plain.read_text(encoding="utf-8").split("\n")
    elif packed.exists():
        lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    else:
        sys.exit(f"{folder}: neither {plain.name} nor {packed.name} is there")
    rows = [json.loads(line) for line in lines if line]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def redrawn(data: dict[str, tuple[list[str], list[str]]]) -> dict[str, tuple[list[str], list[str]]]:
    """The same rows in splits of about the same sizes, drawn at random with a fixed seed."""
    rows = [row for texts, labels in data.values() for row in zip(texts, labels, strict=True)]
    random.Random(0).shuffle(rows)
    first, second = len(rows) // 6, len(rows) // 6 + len(rows) // 10
    parts = {"test": rows[:first], "validation": rows[first:second], "train": rows[second:]}
    return {split: ([text for text, _ in part], [label for _, label in part]) for split, part in parts.items()}


def scores(truth: list[str], predicted: list[str]) -> dict[str, float]:
    return {
        "accuracy": round(float(accuracy_score(truth, predicted)), 4),
        "macro_f1": round(float(f1_score(truth, predicted, average="macro")), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="TF-IDF with logistic regression on the topic data.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[1] / "samples/debian_topics")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--random-split", action="store_true", help="pool the rows and draw the splits at random")
    options = parser.parse_args()
    data = {split: read(options.folder, split) for split in ("train", "validation", "test")}
    if options.random_split:
        data = redrawn(data)
    tried: list[dict[str, Any]] = []
    best: tuple[float, TfidfVectorizer, LogisticRegression] | None = None
    for ngrams in NGRAMS:
        vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=ngrams)
        train, validation = vectorizer.fit_transform(data["train"][0]), vectorizer.transform(data["validation"][0])
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=500).fit(train, data["train"][1])
            found = scores(data["validation"][1], list(model.predict(validation)))
            tried.append({"ngrams": list(ngrams), "C": strength, "features": len(vectorizer.vocabulary_)} | found)
            if best is None or found["macro_f1"] > best[0]:
                best = (found["macro_f1"], vectorizer, model)
    if best is None:
        sys.exit("no setting could be fitted")
    _, vectorizer, model = best
    chosen = {"ngrams": list(vectorizer.ngram_range), "C": model.C, "features": len(vectorizer.vocabulary_)}
    test = scores(data["test"][1], list(model.predict(vectorizer.transform(data["test"][0]))))
    result = {
        "rows": {split: len(texts) for split, (texts, _) in data.items()},
        "labels": len(set(data["train"][1])),
        "validation": tried,
        "chosen": chosen,
        "test": test,
    }
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"{'n-grams':>8} {'C':>5} {'features':>9} {'accuracy':>9} {'macro F1':>9}")
    for row in tried:
        print(
            f"{row['ngrams'][0]:>6}-{row['ngrams'][1]:<1} {row['C']:>5g} {row['features']:>9,} "
            f"{row['accuracy']:>9.2%} {row['macro_f1']:>9.4f}  validation"
        )
    print(
        f"{chosen['ngrams'][0]:>6}-{chosen['ngrams'][1]:<1} {chosen['C']:>5g} {chosen['features']:>9,} "
        f"{test['accuracy']:>9.2%} {test['macro_f1']:>9.4f}  test ({len(data['test'][0]):,} rows)"
    )


if __name__ == "__main__":
    main()
