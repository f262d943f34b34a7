"""Tiny real encoder-decoders: random weights made by transformers, tokenizers trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixed_vocabulary import give_unigram

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(5))

TOKENS = {
    "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "bart": {
        "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>",
        "cls_token": "<s>", "sep_token": "</s>",
    },
    "marian": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
}  # fmt: skip
TOKENS["mt5"] = TOKENS["t5"]


def train(family: str, sentences: list[str]) -> str:
    """``tokenizer.json`` of a tokenizer as the family has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = list(dict.fromkeys(TOKENS[family].values()))
    if family == "bart":
        tokenizer = Tokenizer(models.BPE(unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=341, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(sorted(sentences * 3), trainer)
        single = "<s> $A </s>"
    else:
        tokenizer = Tokenizer(models.Unigram())
        metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
        tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
        give_unigram(tokenizer, sentences, 129, special, "<unk>")
        single = "$A </s>"
    if family in ("t5", "mt5"):
        tokenizer.add_special_tokens(list(reversed(SENTINELS)))
    framing = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>") if token in single.split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=framing)
    return str(tokenizer.to_str())


def sizes_of(family: str) -> dict[str, Any]:
    """Odd sizes: 3 heads, a width of 12, and another depth in the encoder than in the decoder."""
    if family in ("t5", "mt5"):
        return {
            "d_model": 12, "d_kv": 5, "d_ff": 10, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
            "layer_norm_epsilon": 1e-9,
        }  # fmt: skip
    return {
        "d_model": 12, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 3,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 10, "decoder_ffn_dim": 7, "max_position_embeddings": 64,
    }  # fmt: skip


def ids_of(family: str, tokenizer: Any) -> dict[str, int]:
    named = {name: tokenizer.token_to_id(token) for name, token in TOKENS[family].items()}
    ids = {"pad_token_id": named["pad_token"], "eos_token_id": named["eos_token"]}
    if family == "bart":
        return ids | {
            "bos_token_id": named["bos_token"],
            "decoder_start_token_id": named["eos_token"],
            "forced_bos_token_id": named["bos_token"],
            "forced_eos_token_id": named["eos_token"],
        }
    return ids | {"decoder_start_token_id": named["pad_token"]}


def build(family: str, tokenizer: Any, seed: int, untied: bool, options: dict[str, Any]) -> Any:
    """transformers' model with weights large enough that every one of them shows in the logits."""
    import torch
    import transformers
    from edgescribe.converters.anatomy import anatomy_of

    ids = ids_of(family, tokenizer)
    settings = {"vocab_size": tokenizer.get_vocab_size() + 2, **ids, **sizes_of(family), **options}
    config = transformers.AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    model = getattr(transformers, anatomy_of(family).architectures["summarize"])(config).eval()
    if untied:
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if family == "marian" and "embed_positions" in name:
                continue
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    model.generation_config = transformers.GenerationConfig(
        **ids, num_beams=4, length_penalty=0.8, no_repeat_ngram_size=3, max_length=40
    )
    return model


@pytest.fixture(scope="session")
def summarizer_tokenizer(sentences: list[str]) -> Callable[[str], Any]:
    """``summarizer_tokenizer(family)``: a tokenizer trained on a few sentences (once: training differs)."""
    from tokenizers import Tokenizer

    trained: dict[str, str] = {}

    def make(family: str) -> Any:
        kind = "t5" if family == "mt5" else family
        if kind not in trained:
            trained[kind] = train(kind, sentences)
        return Tokenizer.from_str(trained[kind])

    return make


@pytest.fixture(scope="session")
def make_summarizer_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, summarizer_tokenizer: Callable[[str], Any]
) -> Callable[..., tuple[Path, Any]]:
    """``make_summarizer_checkpoint(family, seed=0, untied=False, tokenizer=None, **config)``: a folder as transformers
    saves it, and its model."""

    def make(
        family: str, seed: int = 0, untied: bool = False, tokenizer: Any = None, **options: Any
    ) -> tuple[Path, Any]:
        from transformers import PreTrainedTokenizerFast

        tokenizer = tokenizer or summarizer_tokenizer(family)
        model = build(family, tokenizer, seed, untied, options)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **TOKENS[family]).save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture(scope="session")
def make_summarizer(make_summarizer_checkpoint: Callable[..., tuple[Path, Any]]) -> Callable[..., Any]:
    """As ``make_summarizer_checkpoint``: the student that is read from the folder."""
    from edgescribe.converters.read import read_student

    def make(family: str, **options: Any) -> Any:
        folder, _ = make_summarizer_checkpoint(family, **options)
        return read_student(folder, "summarize")

    return make


@pytest.fixture(scope="session")
def pair_feeds() -> Callable[..., Any]:
    """``pair_feeds(student, sources, targets)``: feeds of an encoder-decoder, padded where texts are of unlike length.

    Targets begin with the token that starts a summary.
    """
    import torch

    def pad(rows: list[list[int]], fill: int) -> Any:
        longest = max(map(len, rows))
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    def make(student: Any, sources: list[str], targets: list[str]) -> Any:
        start = student.config["decoder_start_token_id"]
        read = [student.tokenizer.encode(text).ids for text in sources]
        written = [[start, *student.tokenizer.encode(text, add_special_tokens=False).ids] for text in targets]
        return {
            "source_ids": pad(read, student.pad_id),
            "source_mask": pad([[1] * len(row) for row in read], 0),
            "input_ids": pad(written, student.pad_id),
            "attention_mask": pad([[1] * len(row) for row in written], 0),
        }

    return make


@pytest.fixture(scope="session")
def pair_logits(pair_feeds: Callable[..., Any]) -> Callable[..., Any]:
    """``pair_logits(student, sources, targets)``: logits at every token of the targets, one row after the other."""
    import torch
    from edgescribe.converters.torch_decoder import graph_of

    def answer(student: Any, sources: list[str], targets: list[str]) -> Any:
        feeds = pair_feeds(student, sources, targets)
        with torch.no_grad():
            logits = graph_of(student).eval().run(feeds)["logits"]
        return logits[feeds["attention_mask"].bool()]

    return answer


@pytest.fixture(scope="session")
def model_logits(pair_feeds: Callable[..., Any]) -> Callable[..., Any]:
    """``model_logits(model, student, sources, targets)``: the same of transformers' model, all of it in float64.

    T5's norms take their variance in float32 whatever the weights; after a hidden state near zero that noise grows
    without bound, so here they take it in float64 too.
    """
    import torch

    def exact(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)

    def answer(model: Any, student: Any, sources: list[str], targets: list[str]) -> Any:
        feeds = pair_feeds(student, sources, targets)
        for module in model.modules():
            if type(module).__name__ in ("T5LayerNorm", "MT5LayerNorm"):
                module.forward = exact(module)
        with torch.no_grad():
            logits = model.double()(
                input_ids=feeds["source_ids"], attention_mask=feeds["source_mask"], decoder_input_ids=feeds["input_ids"]
            ).logits
        return logits[feeds["attention_mask"].bool()]

    return answer
