"""How every runtime opens an encoder-decoder: what runs, limits, known answers, saved caches, and a quiet process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.errors import (
    BundleError,
    EngineError,
    InputError,
    OverBudgetError,
    UsageError,
    WrongAnswerError,
)
from edgescribe.runtimes.decoder_contract import CacheState
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderSession, SourceAnswer

pytestmark = pytest.mark.slow  # three engines, each opened often

Draw = Callable[..., np.ndarray]

VOCABULARY, SOURCE, TARGET = 97, 200, 150


def test_what_runs_is_told(runtime: str, int8: Any, session: Any) -> None:
    assert isinstance(session, EncoderDecoderSession)
    used = session.effective
    assert (used.runtime, used.device, used.precision, used.threads) == (runtime, "cpu", "float32", 1)
    assert (used.engine, used.provider) == int8.engine.effective
    assert (session.vocabulary, session.context, session.source_context) == (VOCABULARY, TARGET, SOURCE)


def test_contexts_devices_and_memory_are_held_to(int8: Any, tokens_of: Draw) -> None:
    whole, small = int8.adapter.predicted_memory(int8.path), int8.adapter.predicted_memory(int8.path, 7, 9)
    assert small.cache < whole.cache
    session = int8.open(context=7, source_context=9, memory_limit=small.total)
    assert (session.context, session.source_context) == (7, 9)
    with pytest.raises(InputError, match="at once"):
        session.read(tokens_of(10))
    session.read(tokens_of(9))
    with pytest.raises(InputError, match="do not fit"):
        session.prefill(tokens_of(8))
    session.prefill(tokens_of(7))
    session.close()
    for name, most in (("context", TARGET), ("source_context", SOURCE)):
        for wrong in (0, -1, most + 1):
            with pytest.raises(UsageError, match="context"):
                int8.open(**{name: wrong})
            with pytest.raises(UsageError, match="context"):
                int8.adapter.predicted_memory(int8.path, **{name: wrong})
    with pytest.raises(EngineError, match="npu"):
        int8.open(device="npu")
    int8.open(memory_limit=whole.total).close()
    with pytest.raises(OverBudgetError, match=r"predicted.*MiB|MiB.*predicted"):
        int8.open(memory_limit=whole.total - 1)


def test_known_answers_are_checked(int8: Any, tokens_of: Draw) -> None:
    source, prompt = tokens_of(33), tokens_of(4, 2)
    expected = int8.logits(source, prompt)[-1]
    best = np.argsort(-expected)[:5].astype(np.int32)
    answer = SourceAnswer(source, prompt, best, expected[best], int8.tolerance)
    session = int8.open(source_answers=[answer, answer])
    assert session.source_length == session.length == 0
    with pytest.raises(InputError, match="source"):
        session.step(0)
    session.close()
    for wrong in (expected[best] + 1, np.full(5, np.nan, np.float32)):
        with pytest.raises(WrongAnswerError, match="known answer 2 of 2"):
            int8.open(source_answers=[answer, replace(answer, expected=wrong)])


def test_the_targets_cache_is_saved_and_goes_into_another_session(int8: Any, session: Any, tokens_of: Draw) -> None:
    source, tokens = tokens_of(30), tokens_of(45, 1)
    session.read(source)
    session.prefill(tokens)
    saved = session.save_cache()
    expected = session.step(11)
    assert not any("source" in name for name in saved.arrays)
    assert {array.dtype for array in saved.arrays.values()} == {np.dtype(np.float32)}
    other = int8.open(context=60)
    other.read(source)
    other.load_cache(CacheState(tokens, saved.arrays))
    assert other.length == 45
    np.testing.assert_array_equal(other.step(11), expected)
    name = next(iter(saved.arrays))
    for wrong in (
        CacheState(tokens[:-1], saved.arrays),
        CacheState(tokens, {each: array for each, array in saved.arrays.items() if each != name}),
        CacheState(tokens, {**saved.arrays, name: saved.arrays[name].astype(np.float64)}),
        CacheState(tokens_of(61), saved.arrays),
    ):
        with pytest.raises(InputError):
            other.load_cache(wrong)
    other.close()


QUIET = """
import socket, sys
def refuse(*_): raise SystemExit("the network was asked for")
socket.socket.connect = refuse
from pathlib import Path
from edgescribe.runtimes.registry import open_encoder_decoder
runtime, path = sys.argv[1], Path(sys.argv[2])
session = open_encoder_decoder(runtime, path)
session.read(range(90)); session.prefill(range(90)); fork = session.fork(); fork.step(1); session.step(1)
session.read(range(9)); session.take(fork); session.close(); fork.close()
session = open_encoder_decoder(runtime, path)
session.read([1, 2, 3])
print(session.step(0).shape[0])
print(*sorted(name for name in sys.modules if "torch" in name or ("telemetry" in name and "openvino" in name)))
"""


def test_nothing_is_written_to_the_terminal_no_network_asked_for_and_no_torch_loaded(int8: Any, runtime: str) -> None:
    command = [sys.executable, "-c", QUIET, runtime, str(int8.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [str(VOCABULARY)], "")


def test_a_missing_file_is_refused(int8: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        int8.open(tmp_path / f"missing{int8.path.suffix}")
