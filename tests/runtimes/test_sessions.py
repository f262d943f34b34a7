"""What every runtime's session promises, on a real artifact of each engine."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.errors import BundleError, EngineError, InputError, UsageError, WrongAnswerError
from edgescribe.runtimes.contract import GraphSession, KnownAnswer, OpenOptions, Runtime
from edgescribe.runtimes.registry import RUNTIMES, availability, open_artifact, runtime

MakeFeeds = Callable[..., dict[str, Any]]
ONE_THREAD = OpenOptions(threads=1)


@pytest.fixture
def artifacts(onnx_file: Path, openvino_file: Path, write_tflite: Callable[..., Path]) -> dict[str, Path]:
    return {"onnxruntime": onnx_file, "openvino": openvino_file, "litert": write_tflite("float")}


@pytest.fixture(params=RUNTIMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def artifact(name: str, artifacts: dict[str, Path]) -> Path:
    return artifacts[name]


@pytest.fixture
def session(name: str, artifact: Path) -> Iterator[GraphSession]:
    opened = open_artifact(name, artifact, ONE_THREAD)
    yield opened
    opened.close()


def test_adapters_follow_the_contract(name: str, session: GraphSession) -> None:
    adapter: Runtime = runtime(name)
    assert adapter.name == name
    assert isinstance(session, GraphSession)
    assert session.effective.runtime == name
    assert (session.effective.device, session.effective.threads, session.effective.precision) == ("cpu", 1, "float32")
    assert session.effective.engine_version
    found = {a.runtime: a for a in availability()}[name]
    assert found.available
    assert found.version == session.effective.engine_version
    assert "cpu" in found.devices


def test_inputs_and_outputs_are_told(session: GraphSession) -> None:
    assert {(s.name, s.dtype, s.shape) for s in session.inputs} == {
        ("input_ids", "int32", (None, None)),
        ("attention_mask", "int32", (None, None)),
    }
    assert {(s.name, s.dtype, s.shape) for s in session.outputs} == {
        ("logits", "float32", (None, 5)),
        ("tags", "float32", (None, None, 5)),
    }


@pytest.mark.parametrize("lengths", [(1,), (8,), (5,), (16,), (3, 7, 1), (9, 2, 16, 8)])
def test_answers_are_right_for_any_batch_and_length(
    session: GraphSession, tiny: Any, feeds_for: MakeFeeds, lengths: tuple[int, ...]
) -> None:
    feeds = feeds_for(lengths)
    expected = tiny.expected(feeds)
    got = session.run(feeds)
    assert set(got) == {"logits", "tags"}
    for output, value in got.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[output], atol=2e-5)


def test_arrays_belong_to_the_caller(session: GraphSession, feeds_for: MakeFeeds) -> None:
    feeds = feeds_for((4, 6))
    first = session.run(feeds)
    kept = {output: value.copy() for output, value in first.items()}
    for value in session.run(feeds_for((6, 2))).values():
        value[:] = np.nan
    for output, value in session.run(feeds).items():
        np.testing.assert_array_equal(value, kept[output])
        np.testing.assert_array_equal(first[output], kept[output])


def test_feeds_may_be_views(session: GraphSession, feeds_for: MakeFeeds, tiny: Any) -> None:
    feeds = feeds_for((6, 6), tokens=12)
    views = {key: value[::-1, ::2] for key, value in feeds.items()}
    got = session.run(views)
    np.testing.assert_allclose(got["logits"], tiny.expected(views)["logits"], atol=2e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.pop("attention_mask"), "attention_mask"),
        (lambda f: f.update(extra=f["input_ids"]), "extra"),
        (lambda f: f.update(input_ids=f["input_ids"].astype(np.int64)), "int64"),
        (lambda f: f.update(input_ids=f["input_ids"].tolist()), "list"),
        (lambda f: f.update(input_ids=f["input_ids"][0]), "shape"),
        (lambda f: f.update(input_ids=f["input_ids"][:, :2]), "shape"),
        (lambda f: f.update(input_ids=f["input_ids"][:0], attention_mask=f["attention_mask"][:0]), "empty"),
        (lambda f: f.update(input_ids=-f["input_ids"]), "0 or greater"),
    ],
)
def test_wrong_feeds_are_refused_and_named(
    session: GraphSession, feeds_for: MakeFeeds, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    feeds = feeds_for((4, 3))
    change(feeds)
    with pytest.raises(InputError, match=says):
        session.run(feeds)


def test_eight_threads_get_their_own_answers(session: GraphSession, tiny: Any, feeds_for: MakeFeeds) -> None:
    wrong: list[str] = []

    def hammer(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(60):
            feeds = feeds_for(tuple(int(n) for n in draw.integers(1, 17, size=draw.integers(1, 4))))
            expected, got = tiny.expected(feeds), session.run(feeds)
            for output, value in got.items():
                if not np.allclose(value, expected[output], atol=2e-5):
                    wrong.append(f"thread {seed}: {output}")

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing_under_load_ends_every_thread_with_an_answer_or_an_engine_error(
    session: GraphSession, feeds_for: MakeFeeds
) -> None:
    feeds = feeds_for((5,))
    ends: list[str] = []
    started = threading.Barrier(5)

    def until_closed() -> None:
        started.wait()
        try:
            while True:
                session.run(feeds)
        except EngineError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=until_closed) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    session.close()
    session.close()
    for thread in threads:
        thread.join(timeout=60)
    assert len(ends) == 4
    assert all("closed" in end for end in ends)


def test_known_answers_are_checked_on_open(name: str, artifact: Path, tiny: Any, feeds_for: MakeFeeds) -> None:
    feeds = feeds_for((5, 3))
    right = KnownAnswer(feeds, tiny.expected(feeds), 1e-4)
    open_artifact(name, artifact, replace(ONE_THREAD, known_answers=(right,))).close()
    off = {"logits": right.expected["logits"].copy()}
    off["logits"][1, 2] += 0.5
    wrong = replace(right, expected=off)
    with pytest.raises(WrongAnswerError, match=r"'logits' is .* at \[1, 2\] .* off by 0\.5") as caught:
        open_artifact(name, artifact, replace(ONE_THREAD, known_answers=(right, wrong)))
    assert "known answer 2 of 2" in str(caught.value)
    foreign = KnownAnswer(feeds, {"score": off["logits"]}, 1e-4)
    with pytest.raises(BundleError, match="'score'"):
        open_artifact(name, artifact, replace(ONE_THREAD, known_answers=(foreign,)))
    other_inputs = KnownAnswer({"ids": feeds["input_ids"]}, off, 1e-4)
    with pytest.raises(BundleError, match="input_ids"):
        open_artifact(name, artifact, replace(ONE_THREAD, known_answers=(other_inputs,)))


def test_a_known_answer_that_is_not_a_number_is_wrong(
    name: str, artifact: Path, tiny: Any, feeds_for: MakeFeeds
) -> None:
    feeds = feeds_for((2,))
    expected = tiny.expected(feeds)["logits"]
    expected[0, 0] = np.nan
    answer = KnownAnswer(feeds, {"logits": expected}, 1.0)
    with pytest.raises(WrongAnswerError):
        open_artifact(name, artifact, replace(ONE_THREAD, known_answers=(answer,)))


def test_a_device_that_is_not_there_is_an_error(name: str, artifact: Path) -> None:
    with pytest.raises(EngineError, match="npu"):
        open_artifact(name, artifact, replace(ONE_THREAD, device="npu"))
    with pytest.raises(EngineError, match="gpu"):
        open_artifact(name, artifact, replace(ONE_THREAD, device="gpu"))


def test_threads_are_what_was_asked(name: str, artifact: Path) -> None:
    opened = open_artifact(name, artifact, OpenOptions(threads=2))
    assert opened.effective.threads == 2
    opened.close()
    with pytest.raises(UsageError, match="-1"):
        open_artifact(name, artifact, OpenOptions(threads=-1))


@pytest.mark.parametrize("spinning", [True, False])
def test_options_do_not_change_answers(
    name: str, artifact: Path, tmp_path: Path, tiny: Any, feeds_for: MakeFeeds, spinning: bool
) -> None:
    feeds = feeds_for((7, 4))
    for _ in range(2):  # the second time out of the cache, where there is one
        opened = open_artifact(name, artifact, OpenOptions(threads=2, spinning=spinning, cache_dir=tmp_path))
        np.testing.assert_allclose(opened.run(feeds)["logits"], tiny.expected(feeds)["logits"], atol=2e-5)
        opened.close()


def test_files_that_are_no_artifacts_are_refused(name: str, artifact: Path, tmp_path: Path) -> None:
    def copy(content: bytes) -> Path:
        path = tmp_path / artifact.name
        path.write_bytes(content)
        return path

    content = artifact.read_bytes()
    for damaged in (b"", b"\0" * 64, b"not a model at all, but some text", content[: len(content) // 2]):
        with pytest.raises(BundleError, match=artifact.name):
            open_artifact(name, copy(damaged), ONE_THREAD)
    with pytest.raises(BundleError, match="nowhere"):
        open_artifact(name, tmp_path / f"nowhere{artifact.suffix}", ONE_THREAD)
    with pytest.raises(BundleError, match="opens"):
        open_artifact(name, tmp_path / "model.pt", ONE_THREAD)


def test_an_unknown_runtime_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'torch'.*onnxruntime, openvino, litert"):
        runtime("torch")


RUN_ONCE = """
import sys
from pathlib import Path
import numpy as np
from edgescribe.runtimes.contract import OpenOptions
from edgescribe.runtimes.registry import open_artifact
engines = {"onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "torch", "onnx"}
assert not engines & set(sys.modules), engines & set(sys.modules)
session = open_artifact(sys.argv[1], Path(sys.argv[2]), OpenOptions(threads=2))
for tokens in (3, 12):
    session.run({spec.name: np.ones((1, tokens), np.int32) for spec in session.inputs})
loaded = engines & set(sys.modules)
assert len(loaded) == 1, loaded
assert "openvino_telemetry" not in sys.modules
session.close()
"""


def test_nothing_is_printed_and_only_the_engine_asked_for_is_imported(name: str, artifact: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN_ONCE, name, str(artifact)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
