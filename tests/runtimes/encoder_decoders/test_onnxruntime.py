"""What ONNX Runtime's encoder-decoders have of their own: four files of one artifact, and memory as predicted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgescribe.errors import BundleError, EngineError
from edgescribe.runtimes.onnxruntime_encoder_decoder import ENCODER_DECODER
from edgescribe.runtimes.onnxruntime_encoder_decoder_file import read_encoder_decoder_file
from edgescribe.runtimes.registry import encoder_decoder_runtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Written = Callable[[str, str], Any]

SOURCE, TARGET = 200, 150
FILES = ("writer.onnx", "writer.source.onnx", "writer.kept.onnx", "writer.onnx.data")


@pytest.fixture(scope="module")
def runtime() -> str:
    return "onnxruntime"


def copied(path: Path, folder: Path) -> Path:
    for name in FILES:
        (folder / name).write_bytes(path.with_name(name).read_bytes())
    return folder / path.name



def test_the_registry_finds_it() -> None:
    assert encoder_decoder_runtime("onnxruntime") is ENCODER_DECODER


def test_a_cache_takes_the_room_of_its_keys_and_values(int8: Any) -> None:
    whole, small = ENCODER_DECODER.predicted_memory(int8.path), ENCODER_DECODER.predicted_memory(int8.path, 10, 20)
    assert small.weights == whole.weights
    assert small.cache == (11 * 2 + 20 * 2) * 2 * 64 * 4
    assert whole.cache == ((TARGET + 1) * 2 + SOURCE * 2) * 2 * 64 * 4


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_named(int8: Any, tmp_path: Path, name: str) -> None:
    path = copied(int8.path, tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    for damaged in (content[:-200], content[:100], b""):
        file.write_bytes(damaged)
        with pytest.raises((BundleError, EngineError), match=r"writer.*onnx"):
            int8.open(path)
    file.unlink()
    with pytest.raises(BundleError, match=r"writer.*onnx"):
        int8.open(path)


@pytest.mark.parametrize("name", FILES[1:3])
def test_files_of_two_artifacts_do_not_open_together(
    int8: Any, written: Written, tmp_path: Path, name: str
) -> None:
    path = copied(int8.path, tmp_path)
    (tmp_path / name).write_bytes(written("onnxruntime", "w4a8-dynamic").path.with_name(name).read_bytes())
    with pytest.raises(BundleError, match="not of one artifact"):
        int8.open(path)
    (tmp_path / name).write_bytes(path.read_bytes())
    with pytest.raises(BundleError, match="not that part"):
        int8.open(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=200), cut=st.integers(0, 5000), place=st.integers(0, 1 << 20))
def test_any_bytes_are_an_artifact_or_an_error_of_ours(
    written: Written, tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int, place: int
) -> None:
    path = copied(written("onnxruntime", "w4a8-dynamic").path, tmp_path_factory.mktemp("any"))
    file = path.with_name(FILES[place % 3])
    whole = file.read_bytes()
    place %= len(whole)
    for damaged in (content, whole[:place], whole[:place] + content + whole[place + cut :]):
        file.write_bytes(damaged)
        try:
            assert read_encoder_decoder_file(path).source_context > 0
        except BundleError:
            continue


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions
from edgescribe.runtimes.onnxruntime_encoder_decoder import ENCODER_DECODER

def taken(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

path, source = Path(sys.argv[1]), int(sys.argv[2])
session = ENCODER_DECODER.open_encoder_decoder(path, EncoderDecoderOptions(threads=1, source_context=source))
after = []
for count in (source, source // 3, source - 7, source // 2, source - 1, 20, source):
    session.read(np.arange(count) % session.vocabulary)
    session.step(0)
    after.append(taken("VmRSS") * 1024)
print(taken("VmHWM") * 1024, ENCODER_DECODER.predicted_memory(path, None, source).total, after[0], after[-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
def test_predicted_memory_is_what_a_process_takes_and_sources_leave_nothing_behind(
    precision: str, write: Callable[..., Any], tmp_path: Path
) -> None:
    sizes = {"d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 1024, "num_layers": 6, "num_decoder_layers": 6}
    path = write("onnxruntime", precision, tmp_path, 700, 64, vocab_size=16000, **sizes).path
    for source in (64, 700):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(path), str(source)], check=True, capture_output=True, text=True
        )
        peak, predicted, first, last = (int(word) for word in done.stdout.split())
        assert peak == pytest.approx(predicted, rel=0.2)
        assert last < first + (4 << 20)
