"""Tiny T5 and BART with random weights and a trained Unigram tokenizer, run by transformers and by real engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.errors import InputError
from edgescribe.runtimes.checked_encoder_decoder import CheckedEncoderDecoder
from edgescribe.runtimes.contract import Effective
from edgescribe.sdk.summarizer import Summarizer
from edgescribe.sdk.text_codec import TextCodec
from fixed_vocabulary import give_unigram
from numpy.typing import NDArray

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not care.",
    "The committee met on Monday; the committee adjourned on Tuesday until March.",
    "Anna will send the budget to Peter by Friday, and Peter will ask the board about 4,500 euros.",
    "A small daemon routes packets between the hosts of a network and keeps a log of what it dropped.",
    "Naïve façade, déjà vu: emoji such as 😀 take four bytes and more.",
)
PAD, END, UNKNOWN = 0, 1, 2
SOURCE_CONTEXT, CONTEXT = 96, 40


@pytest.fixture(scope="session")
def unigram_json() -> bytes:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    give_unigram(tokenizer, SENTENCES, 98, ["<pad>", "</s>", "<unk>"], "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return str(tokenizer.to_str()).encode()


@pytest.fixture(scope="session")
def codec(unigram_json: bytes) -> TextCodec:
    return TextCodec(unigram_json)


def random_t5(vocabulary: int, seed: int = 0) -> Any:
    """A small T5 whose texts vary: large weights, and a bias of the end token's row so that texts end."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END, relative_attention_num_buckets=8,
        relative_attention_max_distance=20, dropout_rate=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config).eval()
        for name, parameter in model.named_parameters():
            if "relative" in name:
                torch.nn.init.normal_(parameter, std=1.0)
            elif "EncDec" in name:  # so that texts hang on their sources
                parameter.data += 0.6 * torch.randn_like(parameter)
            elif "layer_norm" not in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def random_bart(vocabulary: int, seed: int = 0) -> Any:
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=vocabulary, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=80, pad_token_id=PAD,
        bos_token_id=3, eos_token_id=END, decoder_start_token_id=END, forced_eos_token_id=None, init_std=0.3,
        dropout=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BartForConditionalGeneration(config).eval()
    model.generation_config.forced_bos_token_id = 3
    return model


class TransformersSession(CheckedEncoderDecoder):
    """Computes every token anew with a model of transformers, in its own dtype."""

    verifies_alike = True
    chunk = 16

    def __init__(
        self, model: Any, source_context: int = SOURCE_CONTEXT, context: int = CONTEXT, most_verified: int = 8
    ) -> None:
        super().__init__()
        self.model, self.source_context, self.context, self.most_verified = (
            model, source_context, context, most_verified,
        )  # fmt: skip
        self.vocabulary = model.config.vocab_size
        self.effective = Effective("torch", "torch", "2", "cpu", "torch", "float32", 1)
        self.kept = np.zeros(context, np.int32)
        self.source: NDArray[np.int32] = np.zeros(0, np.int32)
        self.encoded: Any = None
        self.runs: list[int] = []
        self.reads: list[int] = []
        self.before_run: Callable[[], None] = lambda: None

    def _read(self, tokens: NDArray[np.int32]) -> None:
        import torch

        self.reads.append(len(tokens))
        with torch.no_grad():
            ids = torch.from_numpy(tokens[None].astype(np.int64))
            self.encoded = self.model.get_encoder()(input_ids=ids)

    def _take(self, other: CheckedEncoderDecoder) -> None:
        if not isinstance(other, TransformersSession) or other.model is not self.model:
            raise InputError("no kin")
        self.encoded = other.encoded
        self.kept[: other.length] = other.kept[: other.length]

    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        import torch

        self.before_run()
        self.runs.append(len(tokens))
        end = self._length + len(tokens)
        self.kept[self._length : end] = tokens
        with torch.no_grad():
            ids = torch.from_numpy(self.kept[None, :end].astype(np.int64))
            logits = self.model(encoder_outputs=self.encoded, decoder_input_ids=ids).logits[0, end - wanted :]
        return np.array(logits.numpy(), np.float32)

    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        return {"kept": self.kept[: self._length].copy()}

    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        if list(arrays) != ["kept"] or arrays["kept"].shape != (length,):
            raise InputError("the saved cache is not of this artifact")
        self.kept[:length] = arrays["kept"]

    def _forked(self) -> TransformersSession:
        return TransformersSession(self.model, self.source_context, self.context, self.most_verified)

    def _free(self) -> None:
        self.encoded = None


@pytest.fixture(scope="session")
def t5_of(codec: TextCodec) -> Callable[..., Any]:
    """A random T5 by its seed, for the Unigram's vocabulary or another, the same object each time."""
    made: dict[tuple[int, int], Any] = {}

    def make(seed: int, vocabulary: int = codec.vocabulary_size) -> Any:
        key = (seed, vocabulary)
        if key not in made:
            made[key] = random_t5(vocabulary, seed)
        return made[key]

    return make


@pytest.fixture(scope="session")
def bart_of(codec: TextCodec) -> Callable[[int], Any]:
    return lambda seed: random_bart(codec.vocabulary_size, seed)


@pytest.fixture
def session_of(t5_of: Callable[..., Any]) -> Callable[..., TransformersSession]:
    """A session on a random T5, or on a model that is given."""

    def make(seed: int = 0, model: Any = None, **sizes: Any) -> TransformersSession:
        return TransformersSession(t5_of(seed) if model is None else model, **sizes)

    return make


@pytest.fixture
def summarizer(session_of: Callable[..., TransformersSession], codec: TextCodec) -> Iterator[Summarizer]:
    with Summarizer(session_of(), codec, start_tokens=[PAD], end_tokens=[END]) as summarizer:
        yield summarizer


@pytest.fixture(scope="session")
def _summarizer_bundle(tmp_path_factory: pytest.TempPathFactory, unigram_json: bytes, t5_of: Any) -> Path:
    from edgescribe.converters.families.t5_layers import settle
    from edgescribe.converters.make_summarizer_bundle import make_summarizer_bundle
    from edgescribe.converters.student import Student
    from edgescribe.converters.torch_decoder import graph_of
    from tokenizers import Tokenizer

    model = t5_of(0)
    fields = json.loads(model.config.to_json_string(use_diff=False))
    config, state = settle(fields, {name: each.clone() for name, each in model.state_dict().items()})
    student = Student(
        config, state, Tokenizer.from_str(unigram_json.decode()), {}, "summarize", (), SOURCE_CONTEXT, PAD, "random",
        "0" * 64,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("summarizer") / "bundle"
    options: dict[str, Any] = {"recipe": {}, "seed": 0, "data_sha256": {}, "summary_tokens": CONTEXT}
    runtimes = ["onnxruntime", "openvino", "litert"]
    return make_summarizer_bundle(
        student, {"fp32": graph_of(student)}, runtimes, out, texts=SENTENCES, source=student, **options
    ).folder


@pytest.fixture
def summarizer_folder(_summarizer_bundle: Path) -> Path:
    """A random T5 in float32 for all three runtimes, not to be altered."""
    return _summarizer_bundle


@pytest.fixture
def own_folder(_summarizer_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it to be altered at will."""
    shutil.copytree(_summarizer_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"
