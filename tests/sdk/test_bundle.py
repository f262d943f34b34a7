"""What a good bundle gives, and each fault of a bundle by its own message."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgescribe import BundleError
from edgescribe.sdk.bundle import Bundle, known_answers, read_bundle, seal_of
from edgescribe.sdk.bundle_files import check_relative_path
from hypothesis import given
from hypothesis import strategies as st

ANSWER = ("artifacts", 0, "known_answers", 0)


def alter(folder: Path, place: tuple[Any, ...], value: Any, reseal: bool = True) -> None:
    """Set a value in bundle.json, ``...`` deletes it, and write a seal that fits."""
    document = json.loads((folder / "bundle.json").read_text())
    node = document
    for key in place[:-1]:
        node = node[key]
    if value is ...:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    raw = json.dumps(document).encode()
    (folder / "bundle.json").write_bytes(raw)
    if reseal:
        (folder / "bundle.json.sha256").write_bytes(seal_of(raw))


def test_a_good_bundle(classify_folder: Path) -> None:
    bundle = read_bundle(classify_folder)
    assert bundle.manifest.labels == ("hardware", "games", "other")
    (artifact,) = bundle.artifacts()
    assert bundle.artifact_path(artifact) == classify_folder / "onnxruntime/model.onnx"
    size = sum((classify_folder / name).stat().st_size for name in ("onnxruntime/model.onnx", "tokenizer.json"))
    assert bundle.disk_mib == pytest.approx(size / 2**20)
    assert bundle.artifact_mib(artifact) == pytest.approx(size / 2**20)
    (answer,) = known_answers(artifact)
    assert answer.feeds["input_ids"].dtype == np.int32
    assert answer.expected["logits"].shape == (2, 3)


def test_a_small_bundle_takes_little_memory_to_read(classify_folder: Path) -> None:
    read_bundle(classify_folder)
    tracemalloc.start()
    try:
        read_bundle(classify_folder)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_the_seal_is_what_sha256sum_writes(classify_folder: Path) -> None:
    import hashlib

    digest = hashlib.sha256((classify_folder / "bundle.json").read_bytes()).hexdigest()
    assert (classify_folder / "bundle.json.sha256").read_text() == f"{digest}  bundle.json\n"


def test_asking_for_an_artifact_that_is_not_there_lists_what_is(classify_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"no artifact for litert in w8a8-static; it has onnxruntime in fp32"):
        read_bundle(classify_folder).artifacts("litert", "w8a8-static")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("schema_version",), 2, "schema_version is '2'; this edgescribe reads 1"),
        (("schema_version",), "1", "schema_version is '1'"),
        (("schema_version",), True, "schema_version is 'True'"),
        (("schema_version",), ..., "schema_version is 'None'"),
        (("name",), ..., "missing required field `name`"),
        (("surprise",), 1, "unknown field `surprise`"),
        (("task",), "translate", r"\$.task"),
        (("labels",), ["a", "b"], "the last axis of 'logits' is 3 but there are 2 labels"),
        (("labels",), ["a", "b", "a"], "labels: 'a' is there twice"),
        (("labels",), [], "no labels for the task 'classify'"),
        (("tokenizer", "max_tokens"), 3, "4 tokens, more than tokenizer.max_tokens, 3"),
        (("tokenizer", "max_tokens"), 10**30, "out of range|Expected `int` <="),
        (("tokenizer", "pad_id"), 13, "names the token 13"),
        (("tokenizer", "file", "path"), "../tokenizer.json", r"'\.\.' part"),
        (("tokenizer", "file", "path"), "/etc/passwd.json", "is absolute"),
        (("tokenizer", "file", "path"), "a\\tokenizer.json", "backslash"),
        (("tokenizer", "file", "path"), "absent.json", "the file 'absent.json' is missing"),
        (("tokenizer", "file", "path"), "tokenizer.pkl", "is not a .json file"),
        (("tokenizer", "file", "path"), "bundle.json", "name of the manifest itself"),
        (("tokenizer", "file", "bytes"), 5, "bytes where the manifest says 5"),
        (("tokenizer", "file", "sha256"), "0" * 64, "was changed"),
        (("artifacts",), [], r"\$.artifacts"),
        (("artifacts", 0, "files", 0, "path"), "onnxruntime/model.pkl", "is no file for onnxruntime"),
        (("artifacts", 0, "runtime"), "litert", "is no file for litert"),
        (("artifacts", 0, "buckets"), [16, 16], "do not ascend"),
        (("artifacts", 0, "buckets"), [4, 8], "largest bucket is 8 tokens but texts may have 16"),
        (("artifacts", 0, "inputs", 1, "name"), "input_ids", "'input_ids' is there twice"),
        (("artifacts", 0, "inputs", 1, "name"), "pixels", "unknown input 'pixels'"),
        (("artifacts", 0, "inputs", 1, "shape"), [1, 16], "but no buckets"),
        (("artifacts", 0, "inputs", 1, "dtype"), "float32", "is float32, not int32"),
        (("artifacts", 0, "outputs", 0, "shape"), [None, None, 3], "3 axes where the task 'classify' gives 2"),
        (("artifacts", 0, "outputs", 0, "shape"), [None, None], "no fixed size"),
        ((*ANSWER, "feeds", "input_ids", 0), [2, 4], "different lengths"),
        ((*ANSWER, "feeds", "input_ids", 0, 0), -1, "not in 0"),
        ((*ANSWER, "feeds", "input_ids", 0, 0), 13, "names the token 13"),
        ((*ANSWER, "feeds", "attention_mask", 0, 0), 2, "not in 0 … 1"),
        ((*ANSWER, "feeds", "attention_mask"), ..., "feeds for"),
        ((*ANSWER, "outputs", "logits"), [1.0], "1 values for the shape"),
        ((*ANSWER, "outputs", "logits", 0), 1e39, "not finite"),
        ((*ANSWER, "shapes", "logits"), [3, 2], "does not fit"),
        ((*ANSWER, "tolerance"), 0, "tolerance"),
        (("quality", "student", "accuracy"), None, "quality"),
    ],
)
def test_each_fault_has_its_message(
    bundle_of: Callable[..., Path], place: tuple[Any, ...], value: Any, message: str
) -> None:
    folder = bundle_of()
    alter(folder, place, value)
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(folder)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value) or "bundle.json" in str(caught.value)


def test_a_second_artifact_of_the_same_kind_is_refused(bundle_of: Callable[..., Path]) -> None:
    folder = bundle_of()
    artifact = json.loads((folder / "bundle.json").read_text())["artifacts"][0]
    alter(folder, ("artifacts",), [artifact, artifact])
    with pytest.raises(BundleError, match="a second artifact for onnxruntime in fp32"):
        read_bundle(folder)
    alter(folder, ("artifacts",), [artifact, {**artifact, "precision": "w8a8-static"}])
    with pytest.raises(BundleError, match=r"'onnxruntime/model\.onnx' is there twice"):
        read_bundle(folder)


def test_a_manifest_changed_by_hand_is_refused(bundle_of: Callable[..., Path]) -> None:
    folder = bundle_of()
    alter(folder, ("labels", 0), "hardwarf", reseal=False)
    with pytest.raises(BundleError, match=r"bundle\.json was changed after it was written"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["bundle.json", "bundle.json.sha256", "tokenizer.json", "onnxruntime/model.onnx"])
def test_a_missing_file_is_named(bundle_of: Callable[..., Path], name: str) -> None:
    folder = bundle_of()
    (folder / name).unlink()
    with pytest.raises(BundleError, match=re.escape(name)):
        read_bundle(folder)


def test_links_out_of_the_bundle_are_refused(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = bundle_of()
    outside = tmp_path / "outside.json"
    (folder / "tokenizer.json").rename(outside)
    (folder / "tokenizer.json").symlink_to(outside)
    with pytest.raises(BundleError, match="link that leads out of the bundle"):
        read_bundle(folder)


def test_links_inside_and_to_the_bundle_are_followed(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = bundle_of()
    (folder / "tokenizer.json").rename(folder / "kept.json")
    (folder / "tokenizer.json").symlink_to("kept.json")
    current = tmp_path / "current"
    current.symlink_to(folder)
    assert read_bundle(current).folder == folder


def test_a_link_in_a_circle_is_refused(bundle_of: Callable[..., Path]) -> None:
    folder = bundle_of()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "bundle.json", "onnxruntime/model.onnx"])
def test_a_named_pipe_or_folder_is_no_file(bundle_of: Callable[..., Path], name: str) -> None:
    folder = bundle_of()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleError, match="not a regular file"):
        read_bundle(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(BundleError, match=r"not a regular file|cannot be opened"):
        read_bundle(folder)


def test_a_manifest_that_is_too_large_is_not_read(bundle_of: Callable[..., Path]) -> None:
    folder = bundle_of()
    with (folder / "bundle.json").open("r+b") as file:
        file.truncate(1 << 34)  # sparse
    with pytest.raises(BundleError, match="more than the 16,777,216 allowed"):
        read_bundle(folder)


@pytest.mark.parametrize("path", ["absent", "", "a\0b", "x" * 5000])
def test_no_such_folder(path: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        read_bundle(tmp_path / path)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle\.json in this folder"):
        read_bundle(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="this is a file"):
        read_bundle(tmp_path / "file")
    with pytest.raises(BundleError, match="NoneType"):
        read_bundle(None)  # type: ignore[arg-type]


def test_a_pickle_in_an_artifacts_clothes_is_refused(
    tmp_path: Path, make_bundle: Callable[..., Bundle], tiny_manifest: Callable[..., Any], tokenizer_json: bytes
) -> None:
    import pickle

    from edgescribe.sdk.bundle_writer import write_bundle

    files = {"onnxruntime/model.onnx": pickle.dumps({"a": 1}), "tokenizer.json": tokenizer_json}
    with pytest.raises(BundleError, match="does not begin like a file for onnxruntime"):
        write_bundle(tiny_manifest(), files, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b"\xff\xfe",
        b"null",
        b'{"version":"1.0","model":{"type":"WordLevel","vocab":{},"unk_token":"x"}}',
        b'{"version":"1.0","model":{"type":"Unigram","vocab":[],"unk_id":7}}',
        b'{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b c"]}}',
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    tmp_path: Path, tiny_manifest: Callable[..., Any], onnx_graph: Callable[[str], bytes], content: bytes
) -> None:
    from edgescribe.sdk.bundle_writer import write_bundle

    files = {"onnxruntime/model.onnx": onnx_graph("classify"), "tokenizer.json": content}
    with pytest.raises(BundleError, match=r"tokenizer"):
        write_bundle(tiny_manifest(), files, tmp_path / "out")


def test_figures_must_be_finite(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleError, match="quality"):
        make_bundle(tmp_path / "out", quality={"student": {"accuracy": float("nan")}})


@given(st.text(st.sampled_from("ab./\\:\0 ~\n\u202e") | st.characters(), min_size=1, max_size=30))
def test_a_path_that_is_allowed_stays_inside(path: str) -> None:
    try:
        check_relative_path(path)
    except BundleError:
        return
    # by spelling alone, as the path of a file that need not be there
    normal = os.path.normpath(path)
    assert not normal.startswith(("/", ".."))
    assert normal == path
    assert "\0" not in path


def test_the_manifest_survives_a_round_trip(classify_folder: Path) -> None:
    manifest = read_bundle(classify_folder).manifest
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=type(manifest)) == manifest
