"""Bundles are written whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgescribe import BundleError, OutputError
from edgescribe.sdk.bundle import Bundle, read_bundle
from edgescribe.sdk.bundle_writer import BundleWriter, check_output, replace_in_manifest, write_bundle


def test_what_is_written_can_be_read(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    written = make_bundle(tmp_path / "made" / "for" / "it")
    again = read_bundle(tmp_path / "made" / "for" / "it")
    assert again.manifest == written.manifest
    assert again.folder == written.folder
    assert again.manifest.tokenizer.file.bytes > 0
    assert sorted(path.name for path in written.folder.parent.iterdir()) == ["it"]


def test_permissions_follow_the_umask(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    before = os.umask(0o022)
    try:
        folder = make_bundle(tmp_path / "out").folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "bundle.json").stat().st_mode) == 0o644


def test_files_that_the_manifest_does_not_name_go_along(
    tmp_path: Path, tiny_manifest: Callable[..., Any], onnx_graph: Callable[[str], bytes], tokenizer_json: bytes
) -> None:
    source = tmp_path / "report.html"
    source.write_text("<p>report")
    with BundleWriter(tmp_path / "out") as writer:
        entry = writer.add("onnxruntime/model.onnx", onnx_graph("classify"))
        writer.add("tokenizer.json", tokenizer_json)
        writer.add("report/index.html", source)
        bundle = writer.commit(tiny_manifest())
    assert bundle.manifest.artifacts[0].files[0] == entry
    assert (tmp_path / "out/report/index.html").read_text() == "<p>report"


def test_an_output_that_exists_is_kept_without_force(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    before = (make_bundle(tmp_path / "out").folder / "bundle.json").read_bytes()
    with pytest.raises(OutputError, match="exists already; give another path, or --force"):
        make_bundle(tmp_path / "out", "embed")
    assert (tmp_path / "out/bundle.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_a_bundle(
    tmp_path: Path,
    make_bundle: Callable[..., Bundle],
    tiny_manifest: Callable[..., Any],
    onnx_graph: Callable[[str], bytes],
    tokenizer_json: bytes,
) -> None:
    make_bundle(tmp_path / "out")
    files = {"onnxruntime/model.onnx": onnx_graph("embed"), "tokenizer.json": tokenizer_json}
    write_bundle(tiny_manifest("embed"), files, tmp_path / "out", force=True)
    assert read_bundle(tmp_path / "out").manifest.task == "embed"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_keeps_the_old_bundle_when_the_new_one_fails(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    make_bundle(tmp_path / "out")
    with BundleWriter(tmp_path / "out", force=True) as writer, pytest.raises(BundleError):
        writer.add("../outside", b"")
    with BundleWriter(tmp_path / "out", force=True) as writer:
        writer.add("tokenizer.json", b"{}")  # and no commit
    assert read_bundle(tmp_path / "out").manifest.task == "classify"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_replacing_in_a_manifest(bundle_of: Callable[..., Path]) -> None:
    folder = bundle_of()
    (folder / "report.html").write_text("<p>report")
    replace_in_manifest(read_bundle(folder), quality={"student": {"accuracy": 0.5}})
    again = read_bundle(folder)
    assert again.manifest.quality == {"student": {"accuracy": 0.5}}
    assert (folder / "report.html").read_text() == "<p>report"
    with pytest.raises(BundleError, match="labels"):
        replace_in_manifest(again, labels=("one",))
    assert read_bundle(folder).manifest == again.manifest
    (folder / "onnxruntime/model.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError):
        replace_in_manifest(again, name="other")
    assert (folder / "onnxruntime/model.onnx").read_bytes() == b"damaged"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, make_bundle: Callable[..., Bundle], force: bool) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    for name in ("home", "file"):
        with pytest.raises(OutputError, match="is not a bundle, so it is not replaced"):
            check_output(tmp_path / name, force)
        with pytest.raises(OutputError, match="is not a bundle, so it is not replaced"), BundleWriter(
            tmp_path / name, force
        ):
            pass
    assert (tmp_path / "home/letter.txt").read_text() == "dear"


def test_an_empty_folder_is_taken_with_force(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        make_bundle(tmp_path / "out")
    check_output(tmp_path / "out", force=True)


def test_a_file_that_the_manifest_names_and_nobody_added(tmp_path: Path, tiny_manifest: Callable[..., Any]) -> None:
    with pytest.raises(BundleError, match=r"'onnxruntime/model\.onnx', which was not added"):
        write_bundle(tiny_manifest(), {"tokenizer.json": b"{}"}, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "out") as writer:
        with pytest.raises(BundleError, match="cannot be put into the bundle"):
            writer.add("a.json", tmp_path / "absent")
        with pytest.raises(BundleError, match=r"'\.\.' part"):
            writer.add("../a.json", b"")
        writer.add("b.json", b"")
        with pytest.raises(BundleError, match="twice"):
            writer.add("B.json", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["/proc/bundle", "/sys/bundle", "/dev/null/bundle", "a\0b", "x" * 300])
def test_where_nothing_can_be_written(out: str, make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        make_bundle(tmp_path / out)
    assert caught.value.exit_code == 4
    assert "give another path" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_leaves_nothing_behind(tmp_path: Path, classify_folder: Path) -> None:
    """The operating system itself refuses to let files grow past 64 bytes."""
    program = f"""
import resource, signal
from pathlib import Path
from edgescribe import OutputError
from edgescribe.sdk.bundle import read_bundle
from edgescribe.sdk.bundle_writer import write_bundle
good = read_bundle({str(classify_folder)!r})
files = {{path: good.folder / path for path in ("tokenizer.json", "onnxruntime/model.onnx")}}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
try:
    write_bundle(good.manifest, files, {str(tmp_path / "new" / "out")!r})
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert "the bundle was not written, a file is larger than this process may write" in done.stdout
    assert list(tmp_path.iterdir()) == []
