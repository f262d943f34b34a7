"""A bundle altered at random is refused with an input error, or answers as before; never anything else."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from edgescribe import BundleError, EngineError, InputError, WrongAnswerError, load
from edgescribe.sdk.bundle import read_bundle, seal_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow  # many mutations

FILES = ("bundle.json", "bundle.json.sha256", "tokenizer.json", "onnxruntime/model.onnx")
TEXT = "kernel"  # short enough for every limit that the known answers fit into

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

WILD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 2**31, 2**63, -(2**63), 10**40, 1e308, -0.0, 5e-324]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["..", "../x", "/etc/passwd", "a" * 300, "litert", "w8a8-static", "tag", "embed", "left"]),
    st.lists(st.integers(-3, 20), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
RAW = st.sampled_from(
    [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"[" * 50_000, b'{"a":' * 50_000, b"\xff\xfe"]
    + [b'"\\ud800"', b"'x'", b"1.", b"01", b"", b'"' + b"x" * 100_000 + b'"', b"[[[[]]]]", b"tru"]
)


@contextmanager
def copy_of(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as parent:
        target = Path(parent) / "bundle"
        shutil.copytree(folder, target)
        yield target


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def parent_of(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document


def write_sealed(folder: Path, raw: bytes) -> None:
    (folder / "bundle.json").write_bytes(raw)
    (folder / "bundle.json.sha256").write_bytes(seal_of(raw))


def check_outcome(folder: Path, good: list[float], place: tuple[Any, ...]) -> None:
    """Refused with exit code 4, or the same answer; a changed known answer may also disagree with the engine."""
    refusal, scores = None, None
    try:
        with load(folder) as student:
            scores = list(student.classify(TEXT).scores.values())
    except (InputError, WrongAnswerError) as error:
        refusal = error
    if refusal is None:
        assert scores == good
    else:
        assert refusal.exit_code == 4 or "known_answers" in place
        assert str(refusal).isprintable()


@pytest.fixture(scope="module")
def good_scores(_kept_bundles: dict[str, Path]) -> list[float]:
    with load(_kept_bundles["classify"]) as student:
        return list(student.classify(TEXT).scores.values())


@relaxed
@given(data=st.data(), name=st.sampled_from(FILES))
def test_any_changed_byte_is_noticed(classify_folder: Path, data: st.DataObject, name: str) -> None:
    with copy_of(classify_folder) as folder:
        content = bytearray((folder / name).read_bytes())
        index = data.draw(st.integers(0, len(content) - 1))
        content[index] ^= data.draw(st.integers(1, 255))
        (folder / name).write_bytes(content)
        with pytest.raises(BundleError):
            read_bundle(folder)


@relaxed
@given(data=st.data(), name=st.sampled_from(FILES))
def test_a_file_cut_short_or_grown_is_noticed(classify_folder: Path, data: st.DataObject, name: str) -> None:
    with copy_of(classify_folder) as folder:
        content = (folder / name).read_bytes()
        kept = content[: data.draw(st.integers(0, len(content)))]
        more = data.draw(st.binary(min_size=1 if kept == content else 0, max_size=20))
        (folder / name).write_bytes(kept + more)
        if kept + more != content:
            with pytest.raises(BundleError):
                read_bundle(folder)


@pytest.mark.parametrize("first", FILES)
@pytest.mark.parametrize("second", FILES)
def test_swapped_files_are_noticed(classify_folder: Path, first: str, second: str) -> None:
    if first == second:
        return
    with copy_of(classify_folder) as folder:
        a, b = (folder / first).read_bytes(), (folder / second).read_bytes()
        (folder / first).write_bytes(b)
        (folder / second).write_bytes(a)
        with pytest.raises(BundleError):
            read_bundle(folder)


@relaxed
@given(data=st.data(), value=WILD)
def test_a_wild_value_with_a_fitting_seal(
    classify_folder: Path, good_scores: list[float], data: st.DataObject, value: Any
) -> None:
    document = json.loads((classify_folder / "bundle.json").read_bytes())
    place = data.draw(st.sampled_from(list(places(document))))
    parent_of(document, place)[place[-1]] = value
    with copy_of(classify_folder) as folder:
        write_sealed(folder, json.dumps(document).encode())
        check_outcome(folder, good_scores, place)


@relaxed
@given(data=st.data(), raw=RAW)
def test_a_malformed_value_with_a_fitting_seal(
    classify_folder: Path, good_scores: list[float], data: st.DataObject, raw: bytes
) -> None:
    document = json.loads((classify_folder / "bundle.json").read_bytes())
    place = data.draw(st.sampled_from(list(places(document))))
    parent_of(document, place)[place[-1]] = "@here@"
    with copy_of(classify_folder) as folder:
        write_sealed(folder, json.dumps(document).encode().replace(b'"@here@"', raw))
        check_outcome(folder, good_scores, place)


@relaxed
@given(data=st.data(), key=st.text(max_size=10), value=WILD)
def test_keys_taken_away_or_added_with_a_fitting_seal(
    classify_folder: Path, good_scores: list[float], data: st.DataObject, key: str, value: Any
) -> None:
    document = json.loads((classify_folder / "bundle.json").read_bytes())
    place = data.draw(st.sampled_from(list(places(document))))
    parent = parent_of(document, place)
    if data.draw(st.booleans()):
        del parent[place[-1]]
    elif isinstance(parent, dict):
        parent[key] = value
    else:
        parent.append(value)
    with copy_of(classify_folder) as folder:
        write_sealed(folder, json.dumps(document).encode())
        check_outcome(folder, good_scores, place)


@relaxed
@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_manifest(classify_folder: Path, raw: bytes) -> None:
    with copy_of(classify_folder) as folder:
        write_sealed(folder, raw)
        with pytest.raises(BundleError):
            read_bundle(folder)


def test_a_graph_with_a_name_that_is_no_text(classify_folder: Path) -> None:
    content = (classify_folder / "onnxruntime/model.onnx").read_bytes().replace(b"input_ids", b"input\xe2ids")
    document = json.loads((classify_folder / "bundle.json").read_bytes())
    document["artifacts"][0]["files"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    with copy_of(classify_folder) as folder:
        (folder / "onnxruntime/model.onnx").write_bytes(content)
        write_sealed(folder, json.dumps(document).encode())
        with pytest.raises((InputError, EngineError)):
            load(folder)


@settings(relaxed, max_examples=60)
@given(data=st.data())
def test_an_altered_graph_with_fitting_hashes(
    classify_folder: Path, good_scores: list[float], data: st.DataObject
) -> None:
    """Even where hashes were made to fit: the engine refuses, or a known answer finds a change in what it computes."""
    content = bytearray((classify_folder / "onnxruntime/model.onnx").read_bytes())
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    document = json.loads((classify_folder / "bundle.json").read_bytes())
    entry = document["artifacts"][0]["files"][0]
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    with copy_of(classify_folder) as folder:
        (folder / "onnxruntime/model.onnx").write_bytes(content)
        write_sealed(folder, json.dumps(document).encode())
        with suppress(InputError, EngineError), load(folder) as student:
            student.classify(TEXT)
