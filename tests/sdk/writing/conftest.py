"""A tiny Llama with random weights and a byte-level tokenizer, run by torch in float64 and by real engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.errors import InputError
from edgescribe.runtimes.checked_decoder import CheckedDecoder
from edgescribe.runtimes.contract import Effective
from edgescribe.sdk.text_codec import TextCodec
from edgescribe.sdk.writer import Writer
from numpy.typing import NDArray

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not care.",
    "Dear Sir or Madam, thank you for your letter of the first of March.",
    "The committee met on Monday; the committee adjourned on Tuesday.",
    "她在北京的一家小公司工作,每天写很多信。",
    "Emoji such as 😀, 👩‍👩‍👧 and 🇫🇷 take four bytes and more: naïve façade, déjà vu!",
    '{"name": "Ada", "age": 36, "tags": ["x", "y"]} yes no maybe true false null',
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END = 2
CONTEXT = 256
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def byte_level_json() -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text in SENTENCES for _ in range(3)], trainer)
    return str(tokenizer.to_str()).encode()


@pytest.fixture(scope="session")
def codec(byte_level_json: bytes) -> TextCodec:
    return TextCodec(byte_level_json)


@pytest.fixture(scope="session")
def random_llama(codec: TextCodec) -> Any:
    import torch
    from edgescribe.converters.student import Student
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=codec.vocabulary_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        initializer_range=0.4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = LlamaForCausalLM(config).state_dict()
    state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    fields = json.loads(config.to_json_string(use_diff=False))
    return Student(fields, state, None, {}, "generate", (), CONTEXT, 0, "random", "0" * 64)


class TorchSession(CheckedDecoder):
    """Computes every token anew in float64, so that one or several at a time make no difference."""

    verifies_alike = True
    chunk = 16

    def __init__(self, graph: Any, context: int = CONTEXT, most_verified: int = 8) -> None:
        super().__init__()
        self.graph, self.context, self.most_verified = graph, context, most_verified
        self.vocabulary = graph.shape.vocabulary
        self.effective = Effective("torch", "torch", "2", "cpu", "torch", "float64", 1)
        self.kept = np.zeros(context, np.int32)
        self.runs: list[int] = []
        self.before_run: Callable[[], None] = lambda: None

    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        import torch

        self.before_run()
        self.runs.append(len(tokens))
        end = self._length + len(tokens)
        self.kept[self._length : end] = tokens
        with torch.no_grad():
            ids = torch.from_numpy(self.kept[None, :end].astype(np.int64))
            logits = self.graph({"input_ids": ids})["logits"][0, end - wanted :]
        return logits.numpy().astype(np.float32)

    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        return {"kept": self.kept[: self._length].copy()}

    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        if list(arrays) != ["kept"] or arrays["kept"].shape != (length,):
            raise InputError("the saved cache is not of this artifact")
        self.kept[:length] = arrays["kept"]

    def _forked(self) -> TorchSession:
        return TorchSession(self.graph, self.context, self.most_verified)

    def _free(self) -> None:
        pass


@pytest.fixture(scope="session")
def torch_graph(random_llama: Any) -> Any:
    import torch
    from edgescribe.converters.torch_decoder import TorchDecoder

    torch.set_num_threads(1)
    state = {name: tensor.double() for name, tensor in random_llama.state.items()}
    return TorchDecoder(random_llama.with_state(state)).eval()


@pytest.fixture
def torch_session(torch_graph: Any) -> Callable[..., TorchSession]:
    return lambda **sizes: TorchSession(torch_graph, **sizes)


@pytest.fixture
def writer(torch_session: Callable[..., TorchSession], codec: TextCodec) -> Iterator[Writer]:
    with Writer(torch_session(), codec, end_tokens=[END], chat_template=CHAT) as writer:
        yield writer


ENGINES = {
    "onnxruntime": ("edgescribe.converters.export.onnx_decoder", "export_onnx_decoder", "decoder.onnx"),
    "openvino": ("edgescribe.converters.export.openvino_decoder", "export_openvino_decoder", "decoder.xml"),
    "litert": ("edgescribe.converters.export.litert_decoder", "export_litert_decoder", "decoder.tflite"),
}


@pytest.fixture(scope="session", params=list(ENGINES))
def engine_artifact(
    request: pytest.FixtureRequest, random_llama: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A runtime's name and the tiny Llama's int8 artifact for it."""
    import importlib

    from edgescribe.converters.freeze import freeze
    from edgescribe.converters.torch_decoder import TorchDecoder

    module, function, name = ENGINES[request.param]
    path = tmp_path_factory.mktemp(request.param) / name
    weights = freeze(TorchDecoder(random_llama, "w8a8-dynamic").eval())
    export = getattr(importlib.import_module(module), function)
    export(random_llama.anatomy, random_llama.shape, weights, path, CONTEXT)
    return request.param, path


@pytest.fixture
def engine_writer(engine_artifact: tuple[str, Path], codec: TextCodec) -> Iterator[Writer]:
    from edgescribe.runtimes.registry import open_decoder

    with Writer(open_decoder(*engine_artifact), codec, end_tokens=[END], chat_template=CHAT) as writer:
        yield writer
