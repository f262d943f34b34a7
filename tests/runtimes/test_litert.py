"""What only LiteRT's adapter does: buckets, its own padding, and files it cannot trust."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.errors import BundleError, EngineError, InputError, WrongAnswerError
from edgescribe.runtimes.contract import KnownAnswer, OpenOptions
from edgescribe.runtimes.litert import RUNTIME, LiteRtSession, engine
from edgescribe.runtimes.litert_interpreters import BucketInterpreters
from edgescribe.runtimes.tflite_file import (
    check_tflite,
    float_activation_products,
    read_operators,
    read_signatures,
    small_or_blockwise_tensors,
    with_only,
)
from hypothesis import given, settings
from hypothesis import strategies as st

MakeFeeds = Callable[..., dict[str, Any]]
WriteTflite = Callable[..., Path]


def opened(path: Path, **options: Any) -> LiteRtSession:
    return RUNTIME.open(path, OpenOptions(threads=1, **options))


def test_buckets_are_told_in_order(write_tflite: WriteTflite) -> None:
    assert opened(write_tflite("float", buckets=(16, 4, 8))).buckets == (4, 8, 16)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_goes_to_the_side_asked_for(
    write_tflite: WriteTflite, tiny: Any, feeds_for: MakeFeeds, side: str
) -> None:
    session = opened(write_tflite("float"), padding_side=side)
    feeds = feeds_for((3, 11, 6), tokens=13, side=side)
    got, expected = session.run(feeds), tiny.expected(feeds)
    np.testing.assert_allclose(got["logits"], expected["logits"], atol=2e-5)
    np.testing.assert_allclose(got["tags"], expected["tags"], atol=2e-5)
    padding = feeds["attention_mask"] == 0
    assert not got["tags"][padding].any()


def test_a_mask_with_holes_or_nothing_in_it_is_kept(write_tflite: WriteTflite, tiny: Any) -> None:
    session = opened(write_tflite("float"))
    mask = np.array([[0, 1, 1, 0, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]], np.int32)
    feeds = {"input_ids": np.full_like(mask, 3), "attention_mask": mask}
    np.testing.assert_allclose(session.run(feeds)["logits"], tiny.expected(feeds)["logits"], atol=2e-5)
    nothing = {"input_ids": mask, "attention_mask": np.zeros_like(mask)}
    assert session.run(nothing)["logits"].shape == (2, 5)


def test_rows_longer_than_the_largest_bucket_are_refused_unless_it_is_padding(
    write_tflite: WriteTflite, tiny: Any, feeds_for: MakeFeeds
) -> None:
    session = opened(write_tflite("float"))
    with pytest.raises(InputError, match="row 1 has 17 tokens; the artifact takes at most 16"):
        session.run(feeds_for((4, 17)))
    padded = feeds_for((4, 16), tokens=40)
    got = session.run(padded)
    np.testing.assert_allclose(got["logits"], tiny.expected(padded)["logits"], atol=2e-5)
    assert got["tags"].shape == (2, 40, 5)


def test_each_bucket_answers_whatever_was_used_before(
    write_tflite: WriteTflite, tiny: Any, feeds_for: MakeFeeds
) -> None:
    session = opened(write_tflite("static", buckets=(2, 4, 8, 16)))
    for length in (3, 3, 15, 1, 8, 2, 4, 16, 7):
        feeds = feeds_for((length,))
        expected = tiny.expected(feeds, quantized=True)
        np.testing.assert_allclose(session.run(feeds)["tags"], expected["tags"], atol=1e-6)


def test_the_engine_is_given_the_buckets_that_were_asked_for_and_no_others(write_tflite: WriteTflite) -> None:
    path = write_tflite("float", buckets=(2, 4, 8))
    signatures = {int(name.removeprefix("tokens_")): (name, found) for name, found in read_signatures(path).items()}
    given: list[list[str]] = []

    def make(**options: Any) -> Any:
        interpreter = engine().interpreter.Interpreter(**options)
        given.append(sorted(interpreter.get_signature_list()))
        return interpreter

    interpreters = BucketInterpreters(make, path, signatures, threads=1)
    with interpreters.one_at_a_time():
        for bucket in (2, 4):
            interpreters.prepare(bucket)
    for bucket in (4, 8, 4, 8, 2, 4):
        interpreters.prepare(bucket)
    alone = [["tokens_2"], ["tokens_4"]]
    assert given == [*alone, ["tokens_4", "tokens_8"], ["tokens_2", "tokens_4", "tokens_8"]]


@pytest.mark.parametrize("kept", [(2,), (8,), (16, 4), (8, 2, 16), (2, 4, 8, 16)])
def test_a_file_can_be_left_with_some_of_its_signatures(
    write_tflite: WriteTflite, tiny: Any, feeds_for: MakeFeeds, tmp_path: Path, kept: tuple[int, ...]
) -> None:
    whole = write_tflite("static", buckets=(2, 4, 8, 16))
    signatures = read_signatures(whole)
    content = bytearray(whole.read_bytes())
    for place, written in with_only(signatures[f"tokens_{bucket}"] for bucket in kept):
        content[place : place + len(written)] = written
    path = tmp_path / "some.tflite"
    path.write_bytes(content)
    left = read_signatures(path)
    assert {name: (s.inputs, s.outputs) for name, s in left.items()} == {
        f"tokens_{bucket}": (signatures[f"tokens_{bucket}"].inputs, signatures[f"tokens_{bucket}"].outputs)
        for bucket in kept
    }
    session = opened(path)
    for bucket in kept:
        feeds = feeds_for((bucket,))
        np.testing.assert_allclose(session.run(feeds)["tags"], tiny.expected(feeds, quantized=True)["tags"], atol=1e-6)


def test_the_engine_tells_that_its_fast_kernels_run(write_tflite: WriteTflite) -> None:
    assert opened(write_tflite("static")).effective.provider == "XNNPACK"


def test_as_many_labels_as_tokens_are_still_labels(write_tflite: WriteTflite) -> None:
    session = opened(write_tflite("float", buckets=(5,)))
    assert {spec.name: spec.shape for spec in session.outputs} == {"logits": (None, 5), "tags": (None, None, 5)}


def test_static_int8_gives_the_grid_it_was_made_for(
    write_tflite: WriteTflite, tiny: Any, feeds_for: MakeFeeds
) -> None:
    feeds = feeds_for((7, 2, 12))
    expected = tiny.expected(feeds, quantized=True)
    answer = KnownAnswer(feeds, expected, tolerance=1e-6)
    got = opened(write_tflite("static"), known_answers=(answer,)).run(feeds)
    np.testing.assert_allclose(got["logits"], expected["logits"], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "hybrid", "small"), [("float", 0, 0), ("static", 0, 0), ("dynamic", 4, 0), ("int4", 4, 1)]
)
def test_the_file_tells_what_an_old_engine_miscomputes(
    write_tflite: WriteTflite, kind: str, hybrid: int, small: int
) -> None:
    operators = read_operators(write_tflite(kind))
    assert len(float_activation_products(operators)) == hybrid
    assert len(small_or_blockwise_tensors(operators)) == small
    if hybrid:
        assert "FULLY_CONNECTED" in float_activation_products(operators)[0]


def test_a_file_without_our_signatures_is_refused(write_tflite: WriteTflite, tmp_path: Path) -> None:
    path = tmp_path / "foreign.tflite"
    path.write_bytes(write_tflite("float").read_bytes().replace(b"tokens_", b"banana_"))
    with pytest.raises(BundleError, match=r"foreign\.tflite.*tokens_<T>"):
        opened(path)


def test_an_operator_that_the_engine_lacks_is_its_refusal(write_tflite: WriteTflite, tmp_path: Path) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(write_tflite("float").read_bytes(), 0)
    model.operatorCodes[0].version = 99
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "future.tflite"
    path.write_bytes(bytes(builder.Output()))
    ids = np.ones((1, 3), np.int32)
    answer = KnownAnswer({"input_ids": ids, "attention_mask": ids}, {"logits": np.zeros((1, 5), np.float32)}, 1.0)
    for answers in ((), (answer,)):
        with pytest.raises(EngineError, match=r"refuses .*future\.tflite") as caught:
            opened(path, known_answers=answers)
        assert not isinstance(caught.value, WrongAnswerError)


@settings(max_examples=200, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=30),
    kept=st.one_of(st.none(), st.floats(0, 1)),
)
def test_reading_a_damaged_file_gives_an_error_that_names_it_or_nothing(
    write_tflite: WriteTflite,
    tmp_path_factory: pytest.TempPathFactory,
    flips: list[tuple[int, int]],
    kept: float | None,
) -> None:
    data = bytearray(write_tflite("static").read_bytes())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    path = tmp_path_factory.mktemp("damaged") / "damaged.tflite"
    path.write_bytes(data if kept is None else data[: int(kept * len(data))])
    for read in (check_tflite, read_operators):
        with contextlib.suppress(BundleError):
            read(path)
