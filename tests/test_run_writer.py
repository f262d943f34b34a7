"""``edgescribe`` with a bundle that writes: texts, conversations on a terminal, JSON, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgescribe.__main__ import edgescribe, run

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["a small game of chess for two players, and the network daemon routes packets between the hosts of a network"]


@pytest.fixture(scope="module")
def writer_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a context of 96 tokens, in float32 for ONNX Runtime."""
    import torch
    from edgescribe.converters.make_writer_bundle import make_writer_bundle
    from edgescribe.converters.student import Student
    from edgescribe.converters.torch_decoder import graph_of
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=96, tie_word_embeddings=True,
        initializer_range=0.4,
    )  # fmt: skip
    torch.manual_seed(3)
    state = {name: each for name, each in LlamaForCausalLM(config).state_dict().items() if name != "lm_head.weight"}
    fields = json.loads(config.to_json_string(use_diff=False))
    student = Student(
        fields, state, tokenizer, {"eos_token": "<|im_end|>"}, "generate", (), 96, 0, "random", "0" * 64,
        chat_template=CHAT,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("writer") / "bundle"
    options: dict[str, Any] = {"recipe": {}, "seed": 0, "data_sha256": {}}
    return make_writer_bundle(
        student, {"fp32": graph_of(student)}, ["onnxruntime"], out, texts=TEXTS, source=student, **options
    ).folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as ended:
            sys.exit(run([str(each) for each in arguments]))
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    assert edgescribe is not None
    return call


def test_a_text_is_gone_on_with(writer_bundle: Path, call: Callable[..., Any]) -> None:
    code, out, err = call("run", writer_bundle, "--text", "a small", "--plain", "--max-new-tokens", "6")
    assert code == 0
    assert out.strip()
    assert "6 tokens" in err
    assert call("run", writer_bundle, "--text", "a small", "--plain", "--max-new-tokens", "6")[1] == out


def test_each_line_of_a_pipe_is_answered(writer_bundle: Path, call: Callable[..., Any]) -> None:
    code, out, _ = call("run", writer_bundle, "--max-new-tokens", "4", "--json", stdin="chess\n\nhosts\n")
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(answer["line"], answer["text"]) for answer in answers] == [(1, "chess"), (3, "hosts")]
    for answer in answers:
        assert answer["finish_reason"] in ("length", "stop")
        assert answer["new_tokens"] <= 4
        assert answer["prompt_tokens"] > 2


def test_the_same_seed_gives_the_same_text(writer_bundle: Path, call: Callable[..., Any]) -> None:
    def written(seed: int) -> str:
        drawn = ("--temperature", 2, "--seed", seed, "--max-new-tokens", 12)
        found = call("run", writer_bundle, "--text", "chess", "--json", *drawn)
        text: str = json.loads(found[1])["written"]
        return text

    assert written(1) == written(1)
    assert len({written(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--text", "x", "--context", "500"), 2, "1 to 96"),
        (("--text", "x", "--plain", "--system", "be brief"), 2, "--system"),
        (("--text", "chess " * 200), 4, "tokens"),
        (("--text", "x", "--runtime", "litert"), 4, "no artifact for litert"),
        (("--text", "x", "--temperature", "-1"), 2, "temperature"),
    ],
)
def test_what_is_refused(
    writer_bundle: Path, call: Callable[..., Any], arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, _, err = call("run", writer_bundle, *arguments)
    assert found == code
    assert words in err


def test_bench_and_inspect_and_check_know_writers(writer_bundle: Path, call: Callable[..., Any]) -> None:
    code, out, _ = call("bench", writer_bundle, "--samples", 4, "--seconds", 0, "--tokens", 16)
    assert code == 0
    assert "tokens/s" in out
    code, out, _ = call("inspect", writer_bundle)
    assert code == 0
    assert "96" in out
    code, out, _ = call("check", writer_bundle, "--device", "host", "--samples", 4, "--seconds", 0)
    assert code in (0, 3)
    assert "decode rate" in out


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are of another kind there")
def test_a_conversation_on_a_terminal(writer_bundle: Path) -> None:
    import pty

    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgescribe", "run", str(writer_bundle), "--max-new-tokens", "5"],
        stdin=side, stdout=side, stderr=side,
    )  # fmt: skip
    os.close(side)
    shown = b""

    def until(words: bytes, count: int = 1) -> None:
        nonlocal shown
        end = time.monotonic() + 120
        while shown.count(words) < count and time.monotonic() < end:
            if select.select([main], [], [], 1)[0]:
                shown += os.read(main, 4096)
        assert shown.count(words) >= count, shown

    until(b"> ")
    os.write(main, b"chess\n")
    until(b" after ")
    os.write(main, b"and hosts?\n")
    until(b" after ", 2)
    until(b"> ", 3)
    os.write(main, b"\x04")
    assert process.wait(60) == 0
    os.close(main)
