"""What is LiteRT's own of its decoder sessions; what all runtimes do alike is in test_decoder_sessions.py."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from edgescribe.converters.export.litert_decoder import export_litert_decoder
from edgescribe.converters.freeze import freeze
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder
from edgescribe.errors import BundleError, EngineError, WrongAnswerError
from edgescribe.runtimes.decoder_contract import DecoderAnswer, DecoderOptions, DecoderSession
from edgescribe.runtimes.litert_decoder import DECODER, LiteRtDecoderSession
from edgescribe.runtimes.litert_decoder_file import OVERHEAD, DecoderFile, read_decoder_file, room_for
from edgescribe.runtimes.registry import open_decoder
from hypothesis import given
from hypothesis import strategies as st

VOCABULARY, CONTEXT = 97, 700
PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")


@pytest.fixture(scope="module")
def student() -> Student:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = LlamaForCausalLM(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    fields = json.loads(config.to_json_string(use_diff=False))
    return Student(fields, state, None, {}, "generate", (), CONTEXT, 0, "random", "0" * 64)


@pytest.fixture(scope="module", params=PRECISIONS)
def made(
    request: pytest.FixtureRequest, student: Student, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TorchDecoder]:
    graph = TorchDecoder(student, request.param).eval()
    path = tmp_path_factory.mktemp("litert") / f"{request.param}.tflite"
    export_litert_decoder(student.anatomy, student.shape, freeze(graph), path, CONTEXT)
    return path, graph


@pytest.fixture
def session(made: tuple[Path, TorchDecoder]) -> Iterator[DecoderSession]:
    opened = open_decoder("litert", made[0], DecoderOptions(threads=1))
    yield opened
    opened.close()


def tokens_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


def room_of(session: DecoderSession) -> int:
    assert isinstance(session, LiteRtDecoderSession)
    return session._caches.room


def test_a_token_has_the_same_logits_whatever_run_it_came_by(session: DecoderSession) -> None:
    """Bit for bit, across all sizes of runs and of caches."""
    tokens = tokens_of(300)
    steps = np.stack([session.step(int(token)) for token in tokens])
    for sizes in ((8,), (3, 5), (1, 8, 2), (7,)):
        session.rewind(0)
        at, turn, found = 0, 0, []
        while at < len(tokens):
            found.append(session.verify(tokens[at : at + sizes[turn % len(sizes)]]))
            at, turn = at + len(found[-1]), turn + 1
        np.testing.assert_array_equal(np.concatenate(found), steps)
    for count in (1, 9, 64, 65, 127, 128, 129, 200, 300):
        session.rewind(0)
        np.testing.assert_array_equal(session.prefill(tokens[:count]), steps[count - 1])


def test_caches_grow_with_the_text_and_shrink_for_a_new_one(session: DecoderSession) -> None:
    tokens = tokens_of(CONTEXT)
    session.prefill(tokens[:30])
    small = room_of(session)
    for length in (60, 200, 450, CONTEXT):
        session.prefill(tokens[session.length : length])
        assert length <= room_of(session) <= 1.25 * length + 128
    session.rewind(40)
    after = session.step(5)
    session.rewind(0)
    session.prefill(tokens[:30])
    assert room_of(session) == small
    session.prefill(tokens[30:40])
    np.testing.assert_array_equal(session.step(5), after)


def test_forks_of_different_lengths_take_turns(made: tuple[Path, TorchDecoder], session: DecoderSession) -> None:
    tokens = tokens_of(400)
    session.prefill(tokens[:50])
    short, long = session.fork(), session.fork()
    long.prefill(tokens[50:])
    expected = [short.step(3), long.step(3), short.step(4), long.step(4)]
    short.rewind(50)
    long.rewind(400)
    got = [short.step(3), long.step(3)]
    session.rewind(0)
    session.prefill(tokens[:10])
    got += [short.step(4), long.step(4)]
    np.testing.assert_array_equal(np.stack(got), np.stack(expected))
    short.close()
    long.close()


def test_a_fork_that_nobody_closed_is_closed_with_its_last_reference(session: DecoderSession) -> None:
    assert isinstance(session, LiteRtDecoderSession)
    session.prefill([1, 2, 3])
    fork = session.fork()
    assert session._model._sessions == 2
    del fork
    gc.collect()
    assert session._model._sessions == 1
    session.step(4)


def test_packed_weights_are_kept_in_the_cache_folder(made: tuple[Path, TorchDecoder], tmp_path: Path) -> None:
    path, graph = made
    results = []
    for _ in range(2):
        session = open_decoder("litert", path, DecoderOptions(threads=1, cache_dir=tmp_path / "new" / "cache"))
        results.append(session.prefill(tokens_of(20)))
        session.close()
    (kept,) = (tmp_path / "new" / "cache").iterdir()
    assert kept.stat().st_size > 0.9 * sum(tensor.numel() for tensor in graph.student.state.values()) / 2
    np.testing.assert_array_equal(results[0], results[1])


def test_packed_weights_of_another_artifact_are_not_taken(student: Student, tmp_path: Path) -> None:
    """Of the same name and sizes, as when a bundle is made anew."""
    path, cache = tmp_path / "decoder.tflite", tmp_path / "cache"
    found = []
    for scale in (1.0, 0.5):
        state = {name: tensor * scale if "mlp" in name else tensor for name, tensor in student.state.items()}
        graph = TorchDecoder(student.with_state(state), "w4a8-dynamic").eval()
        export_litert_decoder(student.anatomy, student.shape, freeze(graph), path, 100, (8,))
        session = open_decoder("litert", path, DecoderOptions(threads=1, cache_dir=cache))
        found.append(session.prefill(tokens_of(20)))
        session.close()
        with torch.no_grad():
            expected = graph.run({"input_ids": torch.from_numpy(tokens_of(20)[None].astype(np.int64))})["logits"]
        np.testing.assert_allclose(found[-1], expected[0, -1].numpy(), atol=0.05, rtol=0)
    assert not np.array_equal(found[0], found[1])


def test_damaged_packed_weights_do_not_change_answers(made: tuple[Path, TorchDecoder], tmp_path: Path) -> None:
    def answer() -> np.ndarray:
        session = open_decoder("litert", made[0], DecoderOptions(threads=1, cache_dir=tmp_path))
        try:
            return session.prefill(tokens_of(20))
        finally:
            session.close()

    expected = answer()
    (kept,) = tmp_path.iterdir()
    content = kept.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"x" * 5000):
        kept.write_bytes(damaged)
        np.testing.assert_array_equal(answer(), expected)


def test_processes_that_open_at_once_share_packed_weights(made: tuple[Path, TorchDecoder], tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from edgescribe.runtimes.registry import open_decoder; import sys\n"
        "from edgescribe.runtimes.decoder_contract import DecoderOptions\n"
        "options = DecoderOptions(threads=1, cache_dir=Path(sys.argv[2]))\n"
        "print(open_decoder('litert', Path(sys.argv[1]), options).prefill(range(90)).tobytes().hex())\n"
    )
    command = [sys.executable, "-c", code, str(made[0]), str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    answers = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(answers) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_wrong_answer_leaves_no_packed_weights(made: tuple[Path, TorchDecoder], tmp_path: Path) -> None:
    wrong = DecoderAnswer(tokens_of(4), np.array([1], np.int32), np.array([99.0], np.float32), 0.1)
    with pytest.raises(WrongAnswerError):
        open_decoder("litert", made[0], DecoderOptions(threads=1, cache_dir=tmp_path, answers=[wrong]))
    assert not list(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_is_told(made: tuple[Path, TorchDecoder], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/self/fdinfo")):
        with pytest.raises(EngineError, match="cache folder"):
            open_decoder("litert", made[0], DecoderOptions(cache_dir=folder))


def test_without_room_on_the_disk_weights_are_packed_in_memory(
    made: tuple[Path, TorchDecoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr("edgescribe.runtimes.litert_decoder_model.SPARE_DISK", 4 * left)
    session = open_decoder("litert", made[0], DecoderOptions(threads=1, cache_dir=tmp_path))
    assert np.isfinite(session.prefill(tokens_of(20))).all()
    session.close()
    assert not list(tmp_path.iterdir())


def test_an_encoder_is_not_opened_as_a_decoder(tmp_path: Path, write_tflite: object) -> None:
    path = write_tflite("static")  # type: ignore[operator]
    with pytest.raises(BundleError, match="not a decoder"):
        DECODER.open_decoder(path, DecoderOptions())
    with pytest.raises(BundleError, match="not a decoder"):
        DECODER.predicted_memory(path)


def test_nothing_is_written_to_the_terminal(made: tuple[Path, TorchDecoder]) -> None:
    code = (
        "from pathlib import Path; from edgescribe.runtimes.registry import open_decoder; import sys\n"
        "session = open_decoder('litert', Path(sys.argv[1]))\n"
        "session.prefill(range(90)); session.fork().step(1); session.step(1); session.close()\n"
        "import atexit; atexit.register(print, 'still heard', file=sys.stderr)\n"
        "open_decoder('litert', Path(sys.argv[1])).step(1); print(sorted(m for m in sys.modules if 'torch' in m))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made[0])], capture_output=True, text=True, check=True)
    assert done.stderr == "still heard\n"
    assert done.stdout == "[]\n"


def test_what_a_file_holds_is_read_without_the_engine(made: tuple[Path, TorchDecoder]) -> None:
    file = read_decoder_file(made[0])
    assert (file.vocabulary, file.context, file.sizes) == (VOCABULARY, CONTEXT, (1, 8, 128))
    assert file.last_only == {128}
    assert file.cache_shapes(5)["key_1"] == (1, 2, 5, 16)
    assert file.cache_shapes(5)["value_1"] == (1, 2, 16, 5)
    assert file.cache_bytes(5) == 2 * 2 * 2 * 5 * 16 * 4


@given(left=st.integers(1, 128), free=st.integers(1, 400), every=st.booleans())
def test_runs_fit_the_room_and_cost_no_more_than_steps(left: int, free: int, every: bool) -> None:
    file = DecoderFile(Path(), 1, 400, {}, (1, 8, 128), frozenset({128}))
    left, cost, steps = min(left, free), 0, min(left, free)
    while left:
        size = file.size_of_run(left, free, every)
        assert size <= free
        assert not (every and size == 128)
        taken = min(size, left)
        left, free, cost = left - taken, free - taken, cost + size + OVERHEAD
    assert cost <= steps * (1 + OVERHEAD)


@given(st.integers(1, 100_000))
def test_room_is_enough_and_not_far_too_much(tokens: int) -> None:
    room = room_for(tokens)
    assert tokens <= room < max(tokens + 64, tokens * 1.125)
    assert room_for(room) == room
