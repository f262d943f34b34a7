"""A summariser's bundle altered at random is refused with an input error, or summarises; never anything else."""

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
from edgescribe import BundleError, EngineError, InputError, WrongAnswerError, load, load_summarizer, load_writer
from edgescribe.errors import UsageError
from edgescribe.sdk.bundle import read_bundle, seal_of, task_of
from edgescribe.sdk.bundle_writer import write_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow  # many mutations

TEXT = "The dog"
relaxed = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WILD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 40, 96, 98, 2**31, 2**63, -(2**63), 10**40, 1e308, -0.0, 5e-324, 0.5]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["..", "../x", "a" * 300, "litert", "generate", "embed", "summarize", "x" * 2000]),
    st.lists(st.integers(-3, 120), max_size=9),
    st.dictionaries(
        st.sampled_from(["num_beams", "max_new_tokens", "length_penalty", "early_stopping", "x"]),
        st.floats(-40, 40) | st.integers(-2, 40), max_size=3,
    ),
)  # fmt: skip


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


def write_sealed(folder: Path, document: Any) -> None:
    raw = json.dumps(document).encode()
    (folder / "bundle.json").write_bytes(raw)
    (folder / "bundle.json.sha256").write_bytes(seal_of(raw))


def summarized(folder: Path) -> str:
    with load_summarizer(folder, threads=1) as summarizer:
        return summarizer.summarize(TEXT, max_new_tokens=3).text


def check_outcome(folder: Path, good: str, place: tuple[Any, ...]) -> None:
    """Refused with exit code 4, or the same summary; a changed known answer may also disagree with the engine."""
    refusal, text = None, None
    try:
        text = summarized(folder)
    except (InputError, WrongAnswerError, UsageError) as error:
        refusal = error
    if refusal is None:
        # start, ends, prefix and defaults may become others that are as good
        assert text == good or place[0] == "summarizing"
        return
    assert str(refusal).isprintable()
    if isinstance(refusal, UsageError) and not isinstance(refusal, InputError):
        assert place == ("task",)  # a student of another kind
    else:
        assert refusal.exit_code == 4 or "source_answers" in place


@pytest.fixture(scope="module")
def folder(_summarizer_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with ONNX Runtime's artifact alone, and defaults."""
    import msgspec

    whole = read_bundle(_summarizer_bundle)
    (artifact,) = whole.artifacts("onnxruntime")
    files: Any = {each.path: whole.folder / each.path for each in (*artifact.files, whole.manifest.tokenizer.file)}
    entry = msgspec.structs.replace(
        whole.manifest.summarizing, defaults={"num_beams": 2.0, "min_new_tokens": 2.0, "length_penalty": 1.5}
    )
    manifest = msgspec.structs.replace(whole.manifest, artifacts=(artifact,), summarizing=entry)
    return write_bundle(manifest, files, tmp_path_factory.mktemp("one") / "bundle").folder


@pytest.fixture(scope="module")
def good(folder: Path) -> str:
    return summarized(folder)


def document_of(folder: Path) -> Any:
    return json.loads((folder / "bundle.json").read_bytes())


@relaxed
@given(data=st.data())
def test_any_changed_byte_is_noticed(folder: Path, data: st.DataObject) -> None:
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) >= 5
    name = data.draw(st.sampled_from(files))
    with copy_of(folder) as altered:
        content = bytearray((altered / name).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        (altered / name).write_bytes(content)
        with pytest.raises(BundleError):
            read_bundle(altered)


@settings(relaxed, max_examples=150)
@given(data=st.data(), value=WILD)
def test_a_wild_value_with_a_fitting_seal(folder: Path, good: str, data: st.DataObject, value: Any) -> None:
    document = document_of(folder)
    kinds = [
        [place for place in places(document) if (place[0] == "summarizing") == of_it] for of_it in (True, False)
    ]
    place = data.draw(st.sampled_from(data.draw(st.sampled_from(kinds))))
    parent_of(document, place)[place[-1]] = value
    with copy_of(folder) as altered:
        write_sealed(altered, document)
        check_outcome(altered, good, place)


@relaxed
@given(data=st.data(), key=st.text(max_size=10), value=WILD)
def test_keys_taken_away_or_added(folder: Path, good: str, data: st.DataObject, key: str, value: Any) -> None:
    document = document_of(folder)
    place = data.draw(st.sampled_from(list(places(document))))
    parent = parent_of(document, place)
    if data.draw(st.booleans()):
        del parent[place[-1]]
    elif isinstance(parent, dict):
        parent[key] = value
    else:
        parent.append(value)
    with copy_of(folder) as altered:
        write_sealed(altered, document)
        check_outcome(altered, good, place)


@pytest.mark.slow
@relaxed
@given(data=st.data())
def test_altered_graphs_with_fitting_hashes(folder: Path, data: st.DataObject) -> None:
    """Even where hashes were made to fit: the engine refuses, or a known answer finds a change in what it computes."""
    document = document_of(folder)
    entry = data.draw(st.sampled_from(document["artifacts"][0]["files"]))
    content = bytearray((folder / entry["path"]).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    with copy_of(folder) as altered:
        (altered / entry["path"]).write_bytes(content)
        write_sealed(altered, document)
        with suppress(InputError, EngineError):
            summarized(altered)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source_context": 95}, "source_context is 96, and bundle.json says 95|more than the source context"),
        ({"context": 41}, "context is 40, and bundle.json says 41"),
        ({"vocabulary": 300}, "vocabulary is 98, and bundle.json says 300"),
        ({"start_ids": [98]}, "0 … 97"),
        ({"start_ids": []}, "start_ids"),
        ({"end_ids": [-1]}, "0 … 97"),
        ({"defaults": {"num_beams": 2.5}}, "no whole number"),
        ({"defaults": {"temperature": 1}}, "known are num_beams"),
        ({"defaults": {"num_beams": 64}}, "within its range"),
        ({"prefix": 3}, "prefix"),
        ({"unheard_of": 3}, "unheard_of"),
    ],
    ids=str,
)
def test_what_is_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    document = document_of(folder)
    document["summarizing"] |= change
    with copy_of(folder) as altered:
        write_sealed(altered, document)
        with pytest.raises(BundleError, match=words) as caught:
            summarized(altered)
        assert caught.value.exit_code == 4


def test_answers_are_checked(folder: Path) -> None:
    for change, words in (
        ({"source": [500]}, "0 … 97"),
        ({"source": [3] * 97}, "source context of 96"),
        ({"prompt": [3] * 41}, "context of 40"),
        ({"logits": [1.0]}, "with 1 logits"),
        ({"tolerance": 1e9}, "tolerance"),
    ):
        document = document_of(folder)
        document["artifacts"][0]["source_answers"][0] |= change
        with copy_of(folder) as altered:
            write_sealed(altered, document)
            with pytest.raises(BundleError, match=words):
                read_bundle(altered)
    document = document_of(folder)
    document["artifacts"][0]["source_answers"][0]["logits"][0] += 3
    with copy_of(folder) as altered:
        write_sealed(altered, document)
        with pytest.raises(WrongAnswerError, match="known answer 1"):
            summarized(altered)
    for name in ("answers", "known_answers", "source_answers"):
        document = document_of(folder)
        entry = document["artifacts"][0]
        entry[name] = [] if name == "source_answers" else [
            {key: entry["source_answers"][0][key] for key in ("prompt", "tokens", "logits", "tolerance")}
        ]  # fmt: skip
        with copy_of(folder) as altered:
            write_sealed(altered, document)
            with pytest.raises(BundleError):
                read_bundle(altered)


def test_each_task_is_opened_by_its_own_function(folder: Path) -> None:
    assert task_of(folder) == "summarize"
    assert task_of(folder / "nowhere") == ""
    for opens in (load, load_writer):
        with pytest.raises(UsageError, match=r"summarises; open it with edgescribe.load_summarizer\(\)"):
            opens(folder)
