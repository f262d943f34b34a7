"""What is ONNX Runtime's own about its decoder sessions: files, memory, spare rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from edgescribe.converters.export.onnx_decoder import export_onnx_decoder
from edgescribe.converters.freeze import freeze
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder
from edgescribe.errors import BundleError, EngineError
from edgescribe.runtimes.decoder_contract import DecoderOptions
from edgescribe.runtimes.onnxruntime_decoder import CHUNK, DECODER
from edgescribe.runtimes.onnxruntime_decoder_file import read_decoder_file
from hypothesis import given
from hypothesis import strategies as st

VOCABULARY, CONTEXT = 203, 320


def write_decoder(path: Path, precision: str, context: int = CONTEXT, **options: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": context,
    } | options  # fmt: skip
    config = LlamaConfig(**sizes, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    fields = json.loads(config.to_json_string(use_diff=False))
    student = Student(fields, state, None, {}, "generate", (), context, 0, "random", "0" * 64)
    with torch.no_grad():
        weights = freeze(TorchDecoder(student, precision))
    export_onnx_decoder(student.anatomy, student.shape, weights, path, context)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    write_decoder(path, "w4a8-dynamic")
    return path


def copied(artifact: Path, folder: Path) -> Path:
    for file in (artifact, artifact.with_name("decoder.onnx.data")):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / artifact.name


def test_the_file_tells_its_sizes(artifact: Path) -> None:
    file = read_decoder_file(artifact)
    assert (file.precision, file.context, file.vocabulary, file.layers) == ("w4a8-dynamic", CONTEXT, VOCABULARY, 2)
    assert (file.cache_heads, file.cache_width, file.hidden, file.neurons) == (2, 16, 64, 96)
    assert file.token_bytes == 2 * 2 * 2 * 16 * 4


def test_a_missing_or_short_data_file_is_named(artifact: Path, tmp_path: Path) -> None:
    path = copied(artifact, tmp_path)
    data = tmp_path / "decoder.onnx.data"
    content = data.read_bytes()
    for short in (content[:-200], content[:100], b""):
        data.write_bytes(short)
        with pytest.raises((BundleError, EngineError), match=r"decoder\.onnx"):
            DECODER.open_decoder(path, DecoderOptions(threads=1))
    data.unlink()
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data"):
        DECODER.open_decoder(path, DecoderOptions(threads=1))


def test_another_onnx_file_is_refused_as_no_decoder(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    ])  # fmt: skip
    path = tmp_path / "other.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BundleError, match="not a decoder"):
        DECODER.open_decoder(path, DecoderOptions(threads=1))


@given(content=st.binary(min_size=1, max_size=200), cut=st.integers(0, 5000), place=st.integers(0, 1 << 20))
def test_any_bytes_are_a_decoder_file_or_an_error_of_ours(
    artifact: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int, place: int
) -> None:
    whole = artifact.read_bytes()
    place %= len(whole)
    path = tmp_path_factory.mktemp("any") / "decoder.onnx"
    path.with_name("decoder.onnx.data").touch()
    for damaged in (content, whole[:place], whole[:place] + content + whole[place + cut :]):
        path.write_bytes(damaged)
        try:
            assert read_decoder_file(path).context > 0
        except BundleError:
            continue


def test_prefill_goes_in_chunks_of_what_fits_the_bound_memory(artifact: Path) -> None:
    session = DECODER.open_decoder(artifact, DecoderOptions(threads=1))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)
    expected = []
    for count in (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, CONTEXT):
        session.rewind(0)
        expected.append(session.prefill(tokens[:count]))
    session.rewind(0)
    counts = {CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, CONTEXT}
    steps = [session.step(int(token)) for token in tokens]
    for got, count in zip(expected, sorted(counts), strict=True):
        np.testing.assert_allclose(got, steps[count - 1], atol=0 if session.verifies_alike else 0.05, rtol=0)
    session.close()


def test_a_float_artifact_says_that_steps_and_verifications_differ_or_shows_they_do_not(tmp_path: Path) -> None:
    path = tmp_path / "decoder.onnx"
    write_decoder(path, "fp32")
    session = DECODER.open_decoder(path, DecoderOptions(threads=1))
    session.prefill([1, 2, 3])
    steps = np.stack([session.step(token) for token in (4, 5, 6)])
    session.rewind(3)
    alike = session.verifies_alike
    assert session.length == 3
    equal = np.array_equal(session.verify([4, 5, 6]), steps)
    assert equal or not alike
    session.close()


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from edgescribe.runtimes.decoder_contract import DecoderOptions
from edgescribe.runtimes.onnxruntime_decoder import DECODER

path, context = Path(sys.argv[1]), int(sys.argv[2])
session = DECODER.open_decoder(path, DecoderOptions(threads=1, context=context))
session.prefill(np.arange(context - 1) % session.vocabulary)
session.step(1)
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(peak * 1024, DECODER.predicted_memory(path, context).total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory from /proc")
@pytest.mark.slow
def test_predicted_memory_is_what_a_process_takes(tmp_path: Path) -> None:
    path = tmp_path / "decoder.onnx"
    write_decoder(
        path, "w4a8-dynamic", context=2048, vocab_size=16000, hidden_size=512, intermediate_size=1536,
        num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    for context in (128, 2048):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(path), str(context)], check=True, capture_output=True, text=True
        )
        peak, predicted = (int(word) for word in done.stdout.split())
        assert peak == pytest.approx(predicted, rel=0.2)
