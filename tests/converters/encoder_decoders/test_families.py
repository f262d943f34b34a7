"""Every family of encoder-decoders gives the logits that transformers gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgescribe.converters.anatomy import ENCODER_DECODERS
from edgescribe.converters.families.marian import sinusoids
from edgescribe.converters.freeze import freeze
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.converters.torch_encoder_decoder import TorchEncoderDecoder
from edgescribe.converters.torch_graph import Recording
from edgescribe.errors import StudentError

Make = Callable[..., tuple[Path, Any]]

T5_VARIANTS: list[dict[str, Any]] = [
    {"feed_forward_proj": proj, "untied": untied} for proj in ("relu", "gated-gelu") for untied in (False, True)
]
ONE_LAYER: dict[str, dict[str, Any]] = {
    "t5": {"num_layers": 1, "num_decoder_layers": 1, "num_heads": 1},
    "bart": {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 4},
}
ONE_LAYER |= {"mt5": ONE_LAYER["t5"], "marian": ONE_LAYER["bart"]}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, options) for family in ("t5", "mt5") for options in T5_VARIANTS),
    *((family, {"feed_forward_proj": "gated-silu", "num_decoder_layers": 4}) for family in ("t5", "mt5")),
    # Version 1.1 and FLAN-T5: what enters the head is not scaled.
    ("t5", {"tie_word_embeddings": False, "untied": True, "feed_forward_proj": "gated-gelu"}),
    ("t5", {"tie_word_embeddings": False}),
    ("t5", {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 17}),
    *((family, {}) for family in ("bart", "marian")),
    *((family, {"scale_embedding": True, "activation_function": "relu"}) for family in ("bart", "marian")),
    *((family, {"tie_word_embeddings": False}) for family in ("bart", "marian")),
    ("marian", {"activation_function": "swish", "encoder_layers": 1, "decoder_layers": 3}),
    ("marian", {"share_encoder_decoder_embeddings": False}),
    ("marian", {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}),
    *ONE_LAYER.items(),
]
SOURCES, TARGETS = [0, 2, 7], [4, 1, 0]


def name_of(variant: object) -> str | None:
    return variant if isinstance(variant, str) else "-".join(variant) if isinstance(variant, dict) else None


@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=name_of)
def test_logits_are_those_of_transformers(
    family: str,
    options: dict[str, Any],
    make_summarizer_checkpoint: Make,
    pair_logits: Callable[..., torch.Tensor],
    model_logits: Callable[..., torch.Tensor],
    in_double: Callable[[Student], Student],
    sentences: list[str],
) -> None:
    folder, model = make_summarizer_checkpoint(family, **options)
    student = read_student(folder, "summarize")
    texts = [sentences[number] for number in SOURCES], [sentences[number] for number in TARGETS]
    expected = model_logits(model, student, *texts)
    assert expected.std() > 0.05
    torch.testing.assert_close(pair_logits(in_double(student), *texts), expected, rtol=1e-5, atol=1e-6)


def test_halves_without_a_shared_table(
    make_summarizer_checkpoint: Make, pair_logits: Callable[..., torch.Tensor], sentences: list[str]
) -> None:
    """A BART none of whose tables are tied, as it is made with ``tie_word_embeddings`` off."""
    folder, _ = make_summarizer_checkpoint("bart", tie_word_embeddings=False)
    student = read_student(folder, "summarize")
    assert "model.shared.weight" not in student.state
    assert student.config["share_encoder_decoder_embeddings"] is False
    same = student.state["model.encoder.embed_tokens.weight"]
    tied = student.with_state(student.state | {"model.decoder.embed_tokens.weight": same})
    texts = sentences[:1], sentences[1:2]
    assert not torch.allclose(pair_logits(tied, *texts), pair_logits(student, *texts), atol=0.1)


@pytest.mark.parametrize("precision", ["fp32", "w8a8-static", "w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_every_precision_runs_and_freezes(
    family: str,
    precision: str,
    make_summarizer: Callable[..., Student],
    pair_feeds: Callable[..., Any],
    sentences: list[str],
) -> None:
    wide = {"d_model": 32}
    wide |= {"d_kv": 32, "d_ff": 64} if family in ("t5", "mt5") else {"encoder_attention_heads": 2}
    student = make_summarizer(family, **wide)
    # Attention that random weights make as sharp as a choice turns a rounding into another choice.
    calm = {name: tensor * 0.3 if tensor.dim() > 1 else tensor for name, tensor in student.state.items()}
    student = student.with_state(calm)
    feeds = pair_feeds(student, sentences[:2], sentences[2:4])
    graph = graph_of(student, precision).eval()
    assert type(graph) is TorchEncoderDecoder
    with torch.no_grad():
        exact = graph_of(student).eval().run(feeds)["logits"]
        graph.run(feeds)
        graph.start_quantizers()
        given = graph.run(feeds)["logits"]
    assert torch.isfinite(given).all()
    likeness = torch.nn.functional.cosine_similarity(given, exact, dim=-1).mean()
    assert likeness > {"fp32": 0.9999, "w4a8-dynamic": 0.5}.get(precision, 0.9)
    frozen = freeze(graph)
    matrices = {name.removesuffix(".weight") for name, each in student.layout.items() if each.kind == "matrix"}
    assert matrices <= set(frozen.matrices) | set(frozen.blocks)
    tables = {name.removesuffix(".weight") for name, each in student.layout.items() if each.kind == "table"}
    assert tables <= set(frozen.tables) | set(frozen.blocks)
    assert bool(frozen.blocks) == (precision == "w4a8-dynamic")
    assert bool(frozen.sites) == (precision == "w8a8-static")
    if precision == "w8a8-static":
        sites = {f"encoder.{layer}" for layer in range(3)} | {f"decoder.{layer}" for layer in range(2)} | {"logits"}
        assert {".".join(site.split(".")[:2]) for site in frozen.sites} == sites


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_padding_changes_nothing(
    family: str,
    make_summarizer: Callable[..., Student],
    pair_logits: Callable[..., torch.Tensor],
    in_double: Callable[[Student], Student],
    sentences: list[str],
) -> None:
    student = in_double(make_summarizer(family))
    sources, targets = [sentences[0][:12], sentences[5]], [sentences[1][:9], sentences[2]]
    together = pair_logits(student, sources, targets)
    alone = torch.cat([pair_logits(student, [one], [other]) for one, other in zip(sources, targets, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_hidden_states_of_both_halves_are_recorded(
    family: str, make_summarizer: Callable[..., Student], pair_feeds: Callable[..., Any], sentences: list[str]
) -> None:
    student = make_summarizer(family)
    feeds, recording = pair_feeds(student, sentences[:2], sentences[2:4]), Recording(takes_attention=False)
    with torch.no_grad():
        graph_of(student).run(feeds, recording)
    shape = student.shape
    assert sorted(recording.hidden) == list(range(shape.layers + shape.decoder_layers + 2))
    lengths = [recording.hidden[layer].shape[1] for layer in range(len(recording.hidden))]
    source, target = feeds["source_ids"].shape[1], feeds["input_ids"].shape[1]
    assert lengths == [source] * (shape.layers + 1) + [target] * (shape.decoder_layers + 1)


@pytest.mark.parametrize("width", [12, 7, 2])
def test_positions_of_marian(width: int) -> None:
    import transformers
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    assert transformers.MarianConfig
    expected = MarianSinusoidalPositionalEmbedding(33, width).create_weight()
    torch.testing.assert_close(torch.from_numpy(sinusoids(33, width)), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("t5", {"feed_forward_proj": "mish"}, "mish"),
        ("t5", {"relative_attention_max_distance": 3}, "distance of 3"),
        ("bart", {"activation_function": "mish"}, "mish"),
        ("marian", {"decoder_vocab_size": 77, "share_encoder_decoder_embeddings": False}, "one tokenizer"),
    ],
)
def test_what_a_family_does_not_serve_is_refused(
    family: str, options: dict[str, Any], words: str, make_summarizer_checkpoint: Make
) -> None:
    folder, _ = make_summarizer_checkpoint(family, **options)
    with pytest.raises(StudentError, match=words):
        read_student(folder, "summarize")
