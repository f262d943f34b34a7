"""What OpenVINO's decoder sessions do beside what all runtimes' do: two kinds of cache, memory, other processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgescribe.converters.export.openvino_decoder import export_openvino_decoder
from edgescribe.converters.freeze import freeze
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder
from edgescribe.device_profiles.probe import probe
from edgescribe.errors import BundleError, EngineError, InputError
from edgescribe.runtimes.decoder_contract import CacheState, DecoderOptions
from edgescribe.runtimes.mapped_weights import handing_back, mappings
from edgescribe.runtimes.openvino_decoder import DECODER, OpenVinoDecoders
from edgescribe.runtimes.openvino_decoder_caches import BLOCK, rounded
from edgescribe.runtimes.openvino_decoder_file import read_decoder_file
from edgescribe.runtimes.openvino_decoder_memory import memory_of, widens_weights

PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
TOLERANCES = {"fp32": 1e-4, "w8a8-dynamic": 0.05, "w4a8-dynamic": 0.05}
VOCABULARY, CONTEXT = 97, 90
GROWING = OpenVinoDecoders(paged=False)

Written = Callable[[str], tuple[Path, TorchDecoder]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """``written(precision)``: an artifact of a tiny Llama, and its reference in torch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    fields = json.loads(config.to_json_string(use_diff=False))
    student = Student(fields, state, None, {}, "generate", (), 128, 0, "random", "0" * 64)
    made: dict[str, tuple[Path, TorchDecoder]] = {}

    def write(precision: str) -> tuple[Path, TorchDecoder]:
        if precision not in made:
            graph = TorchDecoder(student, precision).eval()
            path = tmp_path_factory.mktemp(precision) / "decoder.xml"
            with torch.no_grad():
                export_openvino_decoder(student.anatomy, student.shape, freeze(graph), path, CONTEXT)
            made[precision] = path, graph
        return made[precision]

    return write


def torch_logits(graph: TorchDecoder, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return graph({"input_ids": torch.from_numpy(tokens[None].astype(np.int64))})["logits"][0].numpy()


def tokens_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cache_in_the_engines_variables_gives_what_torch_gives(written: Written, precision: str) -> None:
    path, graph = written(precision)
    session = GROWING.open_decoder(path, DecoderOptions(threads=1))
    tokens = tokens_of(CONTEXT)
    expected = torch_logits(graph, tokens)
    near = {"atol": TOLERANCES[precision], "rtol": 0}
    np.testing.assert_allclose(session.prefill(tokens[:30]), expected[29], **near)
    np.testing.assert_allclose(session.step(int(tokens[30])), expected[30], **near)
    np.testing.assert_allclose(session.verify(tokens[31:40]), expected[31:40], **near)
    session.prefill(tokens_of(20, seed=5))
    session.rewind(35)
    np.testing.assert_allclose(session.prefill(tokens[35:]), expected[-1], **near)
    assert session.length == CONTEXT
    with pytest.raises(InputError, match="do not fit"):
        session.step(1)
    session.rewind(0)
    np.testing.assert_allclose(session.prefill(tokens[:3]), expected[2], **near)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.step(1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cache_in_the_engines_variables_is_copied_exactly(written: Written, precision: str) -> None:
    path, _ = written(precision)
    session = GROWING.open_decoder(path, DecoderOptions(threads=1))
    tokens = tokens_of(40)
    session.prefill(tokens)
    saved = session.save_cache()
    expected = session.step(7)
    session.prefill(tokens_of(9, seed=2))
    session.rewind(40)
    fork = session.fork()
    np.testing.assert_array_equal(fork.step(7), expected)
    np.testing.assert_array_equal(session.step(7), expected)
    other = GROWING.open_decoder(path, DecoderOptions(threads=1, context=50))
    other.prefill([1, 2])
    other.load_cache(CacheState(tokens, saved.arrays))
    np.testing.assert_array_equal(other.step(7), expected)
    name = next(iter(saved.arrays))
    for wrong in (
        CacheState(tokens[:-1], saved.arrays),
        CacheState(tokens, {each: array for each, array in saved.arrays.items() if each != name}),
        CacheState(tokens, {**saved.arrays, name: saved.arrays[name].astype(np.float64)}),
    ):
        with pytest.raises(InputError):
            other.load_cache(wrong)
    np.testing.assert_array_equal(session.fork().save_cache().arrays[name], session.save_cache().arrays[name])
    session.rewind(0)
    empty = session.save_cache()
    fork.load_cache(CacheState(tokens[:0], empty.arrays))
    assert fork.length == 0
    np.testing.assert_array_equal(fork.prefill(tokens[:5]), session.prefill(tokens[:5]))
    for each in (session, fork, other):
        each.close()


def test_a_compiled_model_is_kept_where_the_engine_can_read_it_back(written: Written, tmp_path: Path) -> None:
    path, _ = written("w4a8-dynamic")
    answers = []
    for _ in range(2):
        session = GROWING.open_decoder(path, DecoderOptions(threads=1, cache_dir=tmp_path))
        answers.append(session.prefill([1, 2, 3]))
        session.close()
        assert len(list(tmp_path.glob("*.blob"))) == 1
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_tokens_alone_get_the_bits_that_they_get_among_others(
    written: Written, precision: str, threads: int
) -> None:
    session = DECODER.open_decoder(written(precision)[0], DecoderOptions(threads=threads))
    tokens = tokens_of(CONTEXT, seed=4)
    steps = np.stack([session.step(int(token)) for token in tokens])
    equal = []
    for start, count in ((CONTEXT - 1, 1), (CONTEXT - 16, 16), (BLOCK - 1, 3), (BLOCK - 5, 16), (1, 2), (0, 16)):
        session.rewind(start)
        equal.append(np.array_equal(session.verify(tokens[start : start + count]), steps[start : start + count]))
    assert all(equal) or not session.verifies_alike
    session.rewind(10)
    assert session.length == 10
    session.verifies_alike = False
    assert not session.verifies_alike
    np.testing.assert_allclose(session.step(int(tokens[10])), steps[10], atol=TOLERANCES[precision], rtol=0)
    session.close()


def test_floats_are_cached_as_float32_and_the_rest_as_float16(written: Written) -> None:
    for precision in PRECISIONS:
        session = DECODER.open_decoder(written(precision)[0], DecoderOptions(threads=1))
        session.prefill([1, 2, 3])
        dtypes = {array.dtype for array in session.save_cache().arrays.values()}
        assert dtypes <= {np.dtype(np.float32 if precision == "fp32" else np.float16), np.dtype(np.float32)}
        session.close()


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 2), (3, 3), (5, 6), (9, 12), (16, 16), (17, 32), (128, 128)])
def test_numbers_of_rows_are_few(count: int, rows: int) -> None:
    assert rounded(count) == rows


def test_a_file_tells_its_sizes(written: Written) -> None:
    path, _ = written("w4a8-dynamic")
    file = read_decoder_file(path)
    assert (file.precision, file.context, file.vocabulary, file.layers) == ("w4a8-dynamic", CONTEXT, VOCABULARY, 2)
    assert (file.cache_heads, file.cache_width, file.hidden, file.neurons, file.heads) == (2, 16, 64, 96, 4)
    assert file.file_bytes == path.stat().st_size + path.with_suffix(".bin").stat().st_size
    assert file.token_bytes == 2 * 2 * 2 * 2 * 16


def test_weights_that_run_as_floats_are_counted_as_floats(written: Written, tmp_path: Path) -> None:
    totals = {}
    for precision in PRECISIONS:
        file = read_decoder_file(written(precision)[0])
        narrow, wide = (memory_of(file, 64, 128, 16, widened).weights for widened in (False, True))
        assert (wide > 3 * narrow) == (precision != "fp32")
        totals[precision] = wide
    # Of the same numbers as float32; what a tiny file has beside weights is widened along.
    assert totals["fp32"] <= totals["w8a8-dynamic"] <= totals["w4a8-dynamic"]
    for features, expected in (("fp asimd crc32", True), ("fp asimd asimddp", False)):
        (tmp_path / "proc").mkdir(exist_ok=True)
        lines = [f"processor\t: {core}\nCPU implementer\t: 0x41\nCPU architecture: 8\nFeatures\t: {features}\n"
                 "CPU part\t: 0xd03\nCPU revision\t: 4\n" for core in range(2)]  # fmt: skip
        (tmp_path / "proc/cpuinfo").write_text("\n".join(lines))
        assert widens_weights(tmp_path) == expected


def test_files_that_are_no_decoders_are_named(written: Written, openvino_file: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a decoder"):
        read_decoder_file(openvino_file)
    text = written("w4a8-dynamic")[0].read_text()
    copy = tmp_path / "decoder.xml"
    copy.write_text(text)
    with pytest.raises(BundleError, match=r"decoder\.bin"):
        read_decoder_file(copy)
    (tmp_path / "decoder.bin").write_bytes(b"short")
    with pytest.raises(BundleError, match="readable"):
        DECODER.open_decoder(copy, DecoderOptions(threads=1))
    for old, new in (
        ("edgescribe decoder 1", "edgescribe decoder 0"),
        ('<layers value="2"', '<layers value="0"'),
        ('<layers value="2"', '<layers value="two"'),
        ('<vocabulary value="97" />', ""),
    ):
        assert old in text
        copy.write_text(text.replace(old, new))
        with pytest.raises(BundleError):
            read_decoder_file(copy)
    copy.write_bytes(b"<net \xff\xfe")
    with pytest.raises(BundleError):
        read_decoder_file(copy)


OLDER = """
import sys
from pathlib import Path
import numpy as np
from edgescribe.runtimes.decoder_contract import DecoderOptions
from edgescribe.runtimes.openvino_decoder import DECODER
for file in sys.argv[2:]:
    session = DECODER.open_decoder(Path(file), DecoderOptions(threads=1))
    rows = [session.prefill(np.arange(40)), session.step(3), *session.verify([4, 5, 6])]
    print(session.verifies_alike)
    np.save(f"{sys.argv[1]}/{Path(file).parent.name}.npy", np.stack(rows))
"""


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX2_VNNI", "AVX512_CORE"])
def test_processors_with_fewer_instructions_compute_rightly(
    written: Written, instructions: str, tmp_path: Path
) -> None:
    if instructions == "AVX2_VNNI" and "avx_vnni" not in probe().features:
        pytest.skip("OpenVINO runs no writer where ONEDNN_MAX_CPU_ISA hides all that is beyond AVX2")
    paths = [written(precision)[0] for precision in PRECISIONS]
    done = subprocess.run(
        [sys.executable, "-c", OLDER, str(tmp_path), *map(str, paths)],
        capture_output=True, text=True, check=False, env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tokens = np.array([*range(40), 3, 4, 5, 6], np.int32)
    for precision, path in zip(PRECISIONS, paths, strict=True):
        got = np.load(tmp_path / f"{path.parent.name}.npy")
        expected = torch_logits(written(precision)[1], tokens)[-5:]
        np.testing.assert_allclose(got, expected, atol=TOLERANCES[precision], rtol=0)


MAPS = b"""\
7f00-8000 r--s 00000000 08:01 99 /models/a.bin
8000-9000 r--p 00000000 08:01 99 /models/a.bin
9000-a000 rw-p 00000000 08:01 99 /models/a.bin
a000-b000 r--s 00000000 08:01 98 /models/a.bin.old
b000-c000 r-xp 00000000 08:01 97 /cache/x/code
c000-d000 r--s 00000000 08:01 96 /cache/x/model.blob
d000-e000 r--p 00000000 00:00 0
"""


def test_only_pages_that_are_read_alone_are_let_go() -> None:
    assert mappings(MAPS, [b"/models/a.bin"]) == [(0x7F00, 0x100), (0x8000, 0x1000)]
    assert mappings(MAPS, [b"/cache"]) == [(0xC000, 0x1000)]
    assert mappings(MAPS, []) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's pages")
def test_mapped_pages_are_let_go_and_still_there_to_be_read(tmp_path: Path) -> None:
    size = 4 << 20
    path = tmp_path / "weights.bin"
    content = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    content.tofile(path)
    held = np.memmap(path, np.uint8, "r")
    with handing_back([path]):
        total = int(held.sum(dtype=np.int64))
    assert resident(path) < size / 4
    assert int(held.sum(dtype=np.int64)) == total == int(content.sum(dtype=np.int64))
    assert resident(path) > size / 2
    with pytest.raises(ZeroDivisionError), handing_back([tmp_path]):
        raise ZeroDivisionError
    assert resident(path) < size / 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's pages")
def test_an_opened_file_has_few_pages_resident(written: Written) -> None:
    path, _ = written("fp32")
    session = DECODER.open_decoder(path, DecoderOptions(threads=1))
    stored = path.with_suffix(".bin")
    assert resident(stored) < stored.stat().st_size / 4
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
