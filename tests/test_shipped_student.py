"""The student that ships: what its card says of it, and that a bundle made of it is as good on every runtime."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import edgescribe
import pytest

FOLDER = Path(__file__).parents[1] / "samples/debian_topics"
STUDENT = FOLDER / "student"
TFIDF = 0.820
"""Accuracy of TF-IDF with logistic regression on the test split (benchmarks/tfidf_baseline.py)."""


def rows(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.decompress((FOLDER / f"{split}.jsonl.gz").read_bytes()).splitlines()]


@pytest.fixture(scope="module")
def some_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every fourth row of each split: enough to round and to compare."""
    folder = tmp_path_factory.mktemp("data")
    paths = {}
    for split in ("train", "validation", "test"):
        paths[split] = folder / f"{split}.jsonl"
        paths[split].write_text("".join(json.dumps(row) + "\n" for row in rows(split)[::4]), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def conversion(some_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> edgescribe.Conversion:
    """The student rounded without training, on all three runtimes."""
    return edgescribe.convert(
        STUDENT,
        task="classify",
        devices=["host"],
        train=some_data["train"],
        validation=some_data["validation"],
        evaluation=some_data["test"],
        recipe="round",
        out=tmp_path_factory.mktemp("bundle") / "topics",
    )


def test_it_is_small_and_says_where_it_comes_from() -> None:
    files = {path.name: path for path in STUDENT.iterdir()}
    config = json.loads(files["config.json"].read_text(encoding="utf-8"))
    assert files["model.safetensors"].stat().st_size <= 8_000_000
    assert config["num_hidden_layers"] <= 4
    card = files["README.md"].read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "make_student.py" in card
    assert (FOLDER / "make_student.py").is_file()


def test_transformers_loads_it_and_agrees() -> None:
    import torch
    from edgescribe.converters.predict import predict
    from edgescribe.converters.read import read_student
    from edgescribe.converters.torch_graph import TorchGraph
    from edgescribe.converters.training_data import make_examples
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [row["text"] for row in rows("test")[:8]]
    model = AutoModelForSequenceClassification.from_pretrained(STUDENT, dtype=torch.float32).eval()
    fed = AutoTokenizer.from_pretrained(STUDENT)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**fed).logits
    student = read_student(STUDENT, "classify")
    ours = predict(TorchGraph(student), make_examples(student, texts, None))
    assert student.labels == tuple(sorted({row["label"] for row in rows("train")}))
    torch.testing.assert_close(torch.tensor(ours), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_it_beats_the_plain_method_by_two_points() -> None:
    found = edgescribe.evaluate(STUDENT, task="classify", evaluation=FOLDER / "test.jsonl.gz")
    (stage,) = found.stages
    assert stage.metrics is not None
    assert stage.metrics.score >= TFIDF + 0.02


@pytest.mark.slow
def test_rounded_it_is_as_good_on_every_runtime(conversion: edgescribe.Conversion) -> None:
    scores = {stage.name: stage.metrics.score for stage in conversion.report.stages if stage.metrics is not None}
    student = scores.pop("student")
    assert set(scores) == {"onnxruntime/w8a8-static", "openvino/w8a8-static", "litert/w8a8-static"}
    for name, score in scores.items():
        assert score >= student - 0.02, name
    (agreement,) = conversion.report.agreements
    assert agreement.equal_predictions >= 0.99
    # A point is hardly five texts here; on the whole test split half a point is asked for.
    assert agreement.spread_points <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
def test_its_bundle_files_texts_by_topic(conversion: edgescribe.Conversion, runtime: str) -> None:
    with edgescribe.load(conversion.bundle.folder, runtime=runtime) as student:
        answers: Any = student.classify(
            ["A clone of the classic game of chess with a computer opponent and a nice board", "Ruby gem"]
        )
        assert [answer.label for answer in answers] == ["games", "ruby"]
        assert math.isclose(sum(answers[0].scores.values()), 1.0, rel_tol=1e-5)
        assert student.effective.runtime == runtime
