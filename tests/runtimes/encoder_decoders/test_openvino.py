"""What OpenVINO's encoder-decoders have of their own: compiled models, pages of files, and files it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.errors import BundleError
from edgescribe.runtimes.openvino_encoder_decoder import ENCODER_DECODER
from edgescribe.runtimes.openvino_encoder_decoder_file import files_of, read_encoder_decoder_file
from edgescribe.runtimes.openvino_encoder_decoder_memory import memory_of
from edgescribe.runtimes.registry import encoder_decoder_runtime

Draw = Callable[..., np.ndarray]
Written = Callable[[str, str], Any]

VOCABULARY, SOURCE, TARGET = 97, 200, 150


@pytest.fixture(scope="module")
def runtime() -> str:
    return "openvino"


def test_the_registry_finds_it() -> None:
    assert encoder_decoder_runtime("openvino") is ENCODER_DECODER


def test_a_session_that_needs_no_equal_bits_does_without(artifact: Any, tokens_of: Draw) -> None:
    session = artifact.open()
    session.read(tokens_of(SOURCE))
    tokens = tokens_of(17, seed=4)
    steps = np.stack([session.step(int(token)) for token in tokens])
    assert session.verifies_alike or artifact.precision != "fp32"
    session.rewind(0)
    session.verify(tokens[:16])
    session.verifies_alike = False
    assert not session.verifies_alike
    artifact.assert_near(session.step(int(tokens[16])), steps[16])
    session.close()


def test_compiled_models_are_kept(written: Written, tokens_of: Draw, tmp_path: Path) -> None:
    artifact, answers = written("openvino", "w4a8-dynamic"), []
    for _ in range(2):
        session = artifact.open(cache_dir=tmp_path)
        session.read(tokens_of(20))
        answers.append(session.prefill([1, 2, 3]))
        session.close()
        assert len(list(tmp_path.glob("*.blob"))) == 2
    np.testing.assert_array_equal(*answers)


def test_a_file_tells_its_sizes(written: Written) -> None:
    path = written("openvino", "w4a8-dynamic").path
    file = read_encoder_decoder_file(path)
    assert (file.precision, file.context, file.source_context) == ("w4a8-dynamic", TARGET, SOURCE)
    assert (file.vocabulary, file.layers, file.source_layers) == (VOCABULARY, 2, 3)
    assert (file.cache_heads, file.cache_width, file.source_heads, file.source_width) == (4, 16, 4, 16)
    assert (file.hidden, file.neurons, file.heads) == (64, 96, 4)
    assert file.file_bytes == sum(each.stat().st_size for each in files_of(path))
    assert file.token_bytes == file.source_token_bytes == 2 * 4 * 2 * 64
    narrow, wide = (memory_of(file, 10, 20, 128, 16, widened) for widened in (False, True))
    assert wide.weights > 3 * narrow.weights
    assert narrow.cache < memory_of(file, 10, 21, 128, 16, False).cache


def copied(path: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in files_of(path):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / path.name


def test_damaged_files_are_refused(written: Written, openvino_file: Path, tmp_path: Path) -> None:
    artifact = written("openvino", "w4a8-dynamic")
    with pytest.raises(BundleError, match="encoder-decoder"):
        artifact.open(openvino_file)
    original = artifact.path
    for number, file in enumerate(files_of(original)):
        for content in (None, b"", b"short", file.read_bytes()[: file.stat().st_size // 2], b"<net \xff\xfe"):
            path = copied(original, tmp_path / f"{number}-{len(content or b'') if content is not None else 'none'}")
            damaged = files_of(path)[number]
            damaged.unlink()
            if content is not None:
                damaged.write_bytes(content)
            with pytest.raises(BundleError):
                artifact.open(path)
    path = copied(original, tmp_path / "changed")
    for name in ("writer.xml", "writer.source.xml"):
        text = (path.parent / name).read_text()
        for old, new in (
            ("edgescribe encoder-decoder 1", "edgescribe encoder-decoder 0"),
            ('<layers value="2"', '<layers value="0"'),
            ('<layers value="2"', '<layers value="two"'),
            ('<vocabulary value="97" />', ""),
            ('<source_context value="200"', '<source_context value="201"'),
        ):
            assert old in text
            (path.parent / name).write_text(text.replace(old, new))
            with pytest.raises(BundleError):
                artifact.open(path)
        (path.parent / name).write_text(text)
    artifact.open(path).close()
    files_of(path)[1].write_text(path.read_text())
    with pytest.raises(BundleError, match="source_ids"):
        artifact.open(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's pages")
def test_opened_files_have_few_pages_resident(written: Written) -> None:
    artifact = written("openvino", "fp32")
    session, path = artifact.open(), artifact.path
    stored = path.with_suffix(".bin")
    assert resident(stored) < stored.stat().st_size / 4
    session.read([1, 2])
    session.step(0)
    session.close()


def resident(path: Path) -> int:
    """Resident bytes of a file's mappings in this process."""
    found, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line[:17]:
            counted = line.endswith(f" {path.resolve()}")
        elif counted and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
