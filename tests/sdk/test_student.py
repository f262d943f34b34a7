"""Students at work, against what the tiny graph computes in numpy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe import EdgescribeError, InputError, Student, UsageError, load
from edgescribe.sdk.bundle import Bundle, read_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = ["the kernel", "chess game", "", "linux driver in paris .", "game " * 40, "kernel"]


@pytest.fixture(scope="module")
def students(_kept_bundles: dict[str, Path]) -> Iterator[dict[str, Student]]:
    opened = {task: load(folder) for task, folder in _kept_bundles.items()}
    yield opened
    for student in opened.values():
        student.close()


def expected(student: Student, reference: Callable[..., np.ndarray], text: str) -> np.ndarray:
    encoded = student.tokenizer.encode([text])
    result: np.ndarray = reference(student.info.task, encoded.input_ids, encoded.attention_mask)[0]
    return result


def test_classify(students: dict[str, Student], reference: Callable[..., np.ndarray]) -> None:
    student = students["classify"]
    results = student.classify(TEXTS)
    for text, result in zip(TEXTS, results, strict=True):
        logits = expected(student, reference, text).astype(float)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        assert list(result.scores) == ["hardware", "games", "other"]
        np.testing.assert_allclose(list(result.scores.values()), probabilities, atol=1e-5)
        assert result.label == list(result.scores)[int(probabilities.argmax())]
        assert result.score == max(result.scores.values())
        assert result.truncated == (text == TEXTS[4])
        assert student.classify(text).label == result.label


def test_top_k(students: dict[str, Student]) -> None:
    whole = students["classify"].classify("kernel")
    two = students["classify"].classify("kernel", top_k=2)
    assert list(two.scores.values()) == sorted(whole.scores.values(), reverse=True)[:2]
    assert next(iter(two.scores)) == two.label == whole.label
    assert len(students["classify"].classify("kernel", 99).scores) == 3


def test_embed(students: dict[str, Student], reference: Callable[..., np.ndarray]) -> None:
    student = students["embed"]
    rows = student.embed(TEXTS)
    assert rows.shape == (6, 8)
    assert rows.dtype == np.float32
    for text, row in zip(TEXTS, rows, strict=True):
        np.testing.assert_allclose(row, expected(student, reference, text), atol=1e-5)
    assert student.embed("kernel").shape == (8,)
    assert student.embed([]).shape == (0, 8)


def test_an_embedding_belongs_to_the_caller(students: dict[str, Student]) -> None:
    first = students["embed"].embed("kernel")
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(students["embed"].embed("kernel"), kept)


def test_tag_words(students: dict[str, Student], reference: Callable[..., np.ndarray]) -> None:
    student, text = students["tag"], "Linux lives  in Paris."
    tags = student.tag(text, join=False)
    assert [(tag.text, tag.start, tag.end) for tag in tags] == [
        ("Linux", 0, 5), ("lives", 6, 11), ("in", 13, 15), ("Paris", 16, 21), (".", 21, 22),
    ]  # fmt: skip
    best = expected(student, reference, text).argmax(axis=1)[1:-1]
    assert [tag.label for tag in tags] == [student.info.labels[index] for index in best]
    assert all(0 < tag.score <= 1 for tag in tags)
    assert not tags.truncated
    assert student.tag("linux " * 40).truncated


def test_tag_joins_entities_in_batches_too(students: dict[str, Student]) -> None:
    student = students["tag"]
    for text, tags in zip(TEXTS, student.tag(TEXTS, batch_size=2), strict=True):
        assert tags == student.tag(text)
        assert all(tag.label in ("LOC", "ORG") for tag in tags)
        assert all(text[tag.start : tag.end] == tag.text for tag in tags)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_does_not_show(
    tmp_path: Path, make_bundle: Callable[..., Bundle], tiny_manifest: Callable[..., Any], side: str
) -> None:
    import msgspec

    entry = msgspec.structs.replace(tiny_manifest("tag").tokenizer, padding_side=side)
    with load(make_bundle(tmp_path / "out", "tag", tokenizer=entry).folder) as student:
        together = student.tag(TEXTS, join=False)
        assert together == [student.tag(text, join=False) for text in TEXTS]


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.text(max_size=40) | st.sampled_from(TEXTS), max_size=12), size=st.integers(1, 5))
def test_order_and_batches_do_not_show(students: dict[str, Student], texts: list[str], size: int) -> None:
    student = students["classify"]
    together = student.classify(texts, batch_size=size)
    alone = [student.classify(text) for text in texts]
    for left, right in zip(together, alone, strict=True):
        np.testing.assert_allclose(list(left.scores.values()), list(right.scores.values()), atol=1e-6)
        assert left.truncated == right.truncated


def test_many_texts_from_a_generator(students: dict[str, Student]) -> None:
    results = students["classify"].classify((text for text in TEXTS * 60), batch_size=4)  # type: ignore[call-overload]
    assert [result.label for result in results] == [r.label for r in students["classify"].classify(TEXTS)] * 60


@pytest.mark.parametrize(
    ("task", "method"),
    [("classify", "embed"), ("classify", "tag"), ("tag", "classify"), ("embed", "classify"), ("embed", "logits")],
)
def test_the_wrong_method_names_the_right_one(students: dict[str, Student], task: str, method: str) -> None:
    with pytest.raises(UsageError, match=rf"call student\.{task}\(\)"):
        getattr(students[task], method)(["text"])


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["a", None], [b"a"], {"a": "b"}])
def test_what_is_no_text(students: dict[str, Student], text: Any) -> None:
    for task, student in students.items():
        with pytest.raises(InputError):
            getattr(student, task)(text)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": True}, {"batch_size": 0}, {"batch_size": 2.5}])
def test_options_out_of_range(students: dict[str, Student], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="whole number of at least 1"):
        students["classify"].classify("text", **options)


def test_info_and_effective(students: dict[str, Student], classify_folder: Path) -> None:
    student = students["classify"]
    assert student.info.folder == classify_folder
    assert student.info.labels == ("hardware", "games", "other")
    assert (student.info.runtime, student.info.precision, student.info.max_tokens) == ("onnxruntime", "fp32", 16)
    assert student.info.disk_mib == pytest.approx(read_bundle(classify_folder).disk_mib)
    assert (student.effective.runtime, student.effective.device) == ("onnxruntime", "cpu")
    assert "classify, onnxruntime in fp32" in repr(student)


def test_closing(classify_folder: Path) -> None:
    with load(classify_folder) as student:
        student.classify("kernel")
    student.close()
    with pytest.raises(UsageError, match="was closed; load the bundle again"):
        student.classify("kernel")
    assert "closed" in repr(student)


def test_eight_threads_at_once(students: dict[str, Student]) -> None:
    alone = {task: [getattr(student, task)(text) for text in TEXTS] for task, student in students.items()}

    def work(number: int) -> None:
        for turn in range(12):
            for task, student in students.items():
                index = (number + turn) % len(TEXTS)
                found = getattr(student, task)(TEXTS[index])
                if task == "embed":
                    np.testing.assert_array_equal(found, alone[task][index])
                else:
                    assert found == alone[task][index]
                together = getattr(student, task)(TEXTS, batch_size=1 + turn % 3)
                assert len(together) == len(TEXTS)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(8)]:
            done.result()


def test_closing_while_others_work(classify_folder: Path) -> None:
    """Calls under way end well or say that the student was closed."""
    good = load(classify_folder).classify("kernel")
    student = load(classify_folder)
    started, results, faults = threading.Barrier(9), [], []

    def work() -> None:
        started.wait()
        try:
            while True:
                results.append(student.classify("kernel"))
        except EdgescribeError as error:
            faults.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait()
    while len(results) < 50:
        pass
    student.close()
    for thread in threads:
        thread.join(30)
    assert len(faults) == 8
    assert all("closed" in fault for fault in faults)
    assert all(result == good for result in results)
