"""The benchmark of writers on a tiny random student: real bundles, real processes, no peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.converters.student import Student
from engine_clock import clocked
from fp32_reference import Reference, fp32_reference
from writer_bars import MeasuredWriter, writer_bars
from writer_bundles import plain_bundles
from writer_contenders import LeftOut, WriterContender
from writer_engines import Edgescribe
from writer_process import python_share
from writer_report import report_text
from writer_run import Conversation, WriterEffort, WriterFigures, WriterTexts, run_writers
from writer_texts import Window, conversations, prompt, save_windows, scored_tokens, tokens_of, windows

SENTENCE = "the router sends a packet over the network and the mixer plays music for every player of chess"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[(start + step * 5) % len(WORDS)] for step in range(64)) for start in range(8)]
CONTEXT = 512
EFFORT = WriterEffort(rounds=2, times=2, new_tokens=12, starts=2, memory_starts=1)
CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def student() -> Student:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = LlamaForCausalLM(config).state_dict()
    del state["lm_head.weight"]
    fields = json.loads(config.to_json_string(use_diff=False))
    return Student(fields, state, tokenizer, {}, "generate", (), CONTEXT, 0, "tiny", "0" * 64, {}, CHAT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("writers")


@pytest.fixture(scope="module")
def held_out(student: Student) -> list[Window]:
    return windows(student.tokenizer, TEXTS, 60, CONTEXT)


@pytest.fixture(scope="module")
def reference(student: Student, held_out: list[Window], folder: Path) -> Reference:
    return fp32_reference(student, held_out, folder)


@pytest.fixture(scope="module")
def contenders(student: Student, folder: Path) -> list[WriterContender]:
    made = plain_bundles(student, folder, TEXTS[:2], CONTEXT, ["onnxruntime"])
    assert not [one for one in made if isinstance(one, LeftOut)]
    return [one for one in made if isinstance(one, WriterContender)]


@pytest.fixture(scope="module")
def texts(student: Student, held_out: list[Window], reference: Reference, folder: Path) -> WriterTexts:
    save_windows(held_out, folder / "windows.json")
    asked = [
        Conversation(messages, tokens_of(student.tokenizer, messages[0]["content"]))
        for messages in conversations(TEXTS, 2)
    ]
    return WriterTexts(
        prompt(student.tokenizer, TEXTS, 16), 16, CONTEXT, asked, folder / "windows.json", reference.log_probabilities,
        (16, 64),
    )  # fmt: skip


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def found(
    contenders: list[WriterContender], texts: WriterTexts, stages: list[tuple[str, float]]
) -> dict[str, WriterFigures]:
    figures, left_out = run_writers(
        contenders, texts, EFFORT, {"threads": 1, "spinning": False}, lambda stage, part: stages.append((stage, part))
    )
    assert left_out == []
    return figures


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime", "openvino"])
def test_every_engines_calls_are_told_from_pythons_part(runtime: str, student: Student, folder: Path) -> None:
    (made, *_) = plain_bundles(student, folder, TEXTS[:2], CONTEXT, [runtime])
    assert isinstance(made, WriterContender)
    engine = Edgescribe({**made.process, "threads": 1, "context": CONTEXT, "spinning": False})
    with engine.writer:
        prompt = engine.ids(TEXTS[0])[:16]
        before = engine.write(prompt, 12).tokens
        with clocked(runtime) as clock:
            assert engine.write(prompt, 12).tokens == before
            spent, calls = clock.taken()
            assert calls >= 12
            assert spent > 0
        share = python_share(engine, prompt, 60)
        assert share is not None
        assert 0 < share < 1
        assert engine.write(prompt, 12).tokens == before
        assert clock.taken() == (0, 0)


def test_every_writer_is_timed_started_and_scored(
    found: dict[str, WriterFigures], stages: list[tuple[str, float]]
) -> None:
    assert list(found) == ["edgescribe w8a8-dynamic, onnxruntime", "edgescribe w4a8-dynamic, onnxruntime"]
    for figures in found.values():
        assert [len(times) for times in figures.prefill_ms] == [2, 2]
        assert [len(steps) for steps in figures.steps_ms] == [22, 22]
        assert len(figures.speeds) == 2
        assert all(speed > 0 for speed in figures.speeds)
        assert len(figures.cold_ms) == 2
        assert len(figures.peak_rss_mib) == 1
        assert all(0 < share < 1 for share in figures.python_share)
        assert [len(tokens) for tokens in figures.plain.tokens] == [12, 12]
        assert figures.plain.tokens == figures.lookup.tokens
        assert figures.plain.tokens_per_s > 0
        assert figures.lookup.accepted <= figures.lookup.proposed
        assert [point["context"] for point in figures.growth] == [16, 64]
        assert figures.engine.startswith("onnxruntime 1.")
    assert {stage for stage, _ in stages} == {
        "loading", "decoding", "rewriting", "start-up and memory", "quality",
    }  # fmt: skip
    assert all(0 <= part < 1 for _, part in stages)


def test_quality_is_near_float32(
    found: dict[str, WriterFigures], reference: Reference, held_out: list[Window]
) -> None:
    int8, int4 = found.values()
    tokens = scored_tokens(held_out)
    assert reference.nll == pytest.approx(np.log(320), rel=0.2)
    assert int8.nats / tokens == pytest.approx(reference.nll, abs=0.01)
    assert int4.nats / tokens == pytest.approx(reference.nll, abs=0.1)
    assert int8.kl is not None
    assert int4.kl is not None
    assert 0 <= int8.kl < int4.kl < 0.1
    assert int8.agreed is not None
    assert int8.agreed > 0.8


def test_the_report_tells_all(
    contenders: list[WriterContender],
    found: dict[str, WriterFigures],
    reference: Reference,
    held_out: list[Window],
) -> None:
    import generate
    import machine_state

    tokens = scored_tokens(held_out)
    measured = [MeasuredWriter(one, found[one.name], found[one.name].nats / tokens) for one in contenders]
    state = machine_state.now()
    report: dict[str, Any] = {
        "machine": vars(machine_state.surroundings(state, state, 1.0, generate.peer_versions())),
        "settings": {
            "student": "tiny", "threads": 1, "batch": 1, "tokens": 16, "context": CONTEXT, "waiting": "sleep",
            "effort": vars(EFFORT), "scored_tokens": tokens, "rewritings": 2, "fp32_nll": reference.nll,
            "bandwidth_gb_s": 10.0,
        },
        "contenders": [generate.plain(one, 10.0) for one in measured],
        "left_out": [{"name": "llama.cpp Q4_0", "reason": "no compiler"}],
        "bars": [vars(bar) for bar in writer_bars(measured, reference.nll)],
    }  # fmt: skip
    json.dumps(report)
    text = report_text(report)
    for words in ("edgescribe w4a8-dynamic, onnxruntime", "left out: llama.cpp Q4_0: no compiler", "with lookup",
                  "Load average", "llama-cpp-python", "artifact, edgescribe w8a8-dynamic, onnxruntime"):  # fmt: skip
        assert words in text


def test_a_writer_that_cannot_be_opened_is_left_out(
    contenders: list[WriterContender], texts: WriterTexts, tmp_path: Path
) -> None:
    broken = WriterContender("broken", "ours", "litert", 4, contenders[0].interpreter,
                             {**contenders[0].process, "path": str(tmp_path)}, [])  # fmt: skip
    figures, left_out = run_writers([broken], texts, EFFORT, {"threads": 1, "spinning": False})
    assert figures == {}
    assert [one.name for one in left_out] == ["broken"]
    assert "bundle" in left_out[0].reason
