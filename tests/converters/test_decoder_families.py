"""Every family of writers gives the logits that transformers gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgescribe.converters.anatomy import DECODERS
from edgescribe.converters.freeze import freeze
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder, graph_of
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.errors import StudentError

Make = Callable[..., tuple[Path, Any]]

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in DECODERS),
    *((family, {"tie_word_embeddings": True}) for family in ("llama", "qwen2", "qwen3")),
    *((family, {"tie_word_embeddings": False}) for family in ("gemma", "gpt2")),
    *((family, {"num_hidden_layers": 1, "vocab_size": 401}) for family in DECODERS),
    *((family, {"num_key_value_heads": 1}) for family in ("gemma", "llama")),
    *((family, {"num_key_value_heads": 9, "head_dim": 2}) for family in ("llama", "qwen2", "qwen3")),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("gemma", {"attention_bias": True, "head_dim": 256}),
    ("gemma", {"hidden_act": "gelu"}),
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    (
        "llama",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 40,
            },
        },
    ),
    ("gpt2", {"n_inner": None, "activation_function": "relu"}),
    ("gpt2", {"scale_attn_weights": False, "n_head": 1}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 48}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
]


def name_of(variant: object) -> str | None:
    return variant if isinstance(variant, str) else "-".join(variant) if isinstance(variant, dict) else None


@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=name_of)
def test_a_writer_answers_as_transformers_does(
    family: str, options: dict[str, Any], make_writer_checkpoint: Make, sentences: list[str]
) -> None:
    folder, model = make_writer_checkpoint(family, **options)
    student = read_student(folder, "generate")
    student = student.with_state({name: tensor.double() for name, tensor in student.state.items()})
    graph, model = graph_of(student), model.double()
    for text in (sentences[0], sentences[7], "x"):
        ids = torch.tensor([student.tokenizer.encode(text).ids[:48]])
        with torch.no_grad():
            expected, given = model(ids).logits, graph.run({"input_ids": ids})["logits"]
        assert expected.std() > 0.05
        # transformers' norms and rotary angles are made in float32 whatever the weights are.
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize("family", DECODERS)
def test_frozen_numbers_are_those_of_the_program(
    family: str, precision: str, make_writer: Callable[..., Student], sentences: list[str]
) -> None:
    """What was frozen, put back as floats, answers as the program with fake quantisation."""
    options = {"n_embd": 96} if family == "gpt2" else {"hidden_size": 96, "num_attention_heads": 3, "head_dim": 32}
    if family != "gpt2":
        options |= {"num_key_value_heads": 1, "intermediate_size": 64}
    student = make_writer(family, **options)
    graph = TorchDecoder(student, precision)
    frozen = freeze(graph)
    state = {}
    for name, tensor in student.state.items():
        short, parameter = name.removesuffix(".weight"), student.layout[name]
        values: Any = frozen.vectors.get(name)
        if parameter.kind == "bias":
            bias_of = name.removesuffix(".bias")
            values = (frozen.blocks.get(bias_of) or frozen.matrices[bias_of]).bias
        elif short in frozen.blocks:
            values = frozen.blocks[short].dequantized()
        elif short in frozen.matrices:
            matrix = frozen.matrices[short]
            values = matrix.weight if precision == "fp32" else matrix.dequantized()
        elif short in frozen.tables:
            table = frozen.tables[short]
            values = table if precision == "fp32" else table.dequantized()
        values = torch.from_numpy(values.copy())
        state[name] = values.T if parameter.matrix == "in_out" and parameter.kind == "matrix" else values
        assert state[name].shape == tensor.shape
    ids = torch.tensor([student.tokenizer.encode(sentences[0]).ids])
    back = TorchDecoder(student.with_state(state))
    if precision != "fp32":
        back.precision, back.inputs = precision, graph.inputs
        back._on_grid = lambda weight, names=(): weight  # type: ignore[method-assign]
    with torch.no_grad():
        expected, given = (each.eval().run({"input_ids": ids})["logits"] for each in (graph, back))
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "'yarn'"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4}}, "all or none"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "over 8 tokens"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, "over 9 tokens"),
        ("llama", {"sliding_window": 8}, "sliding_window to null"),
        ("gemma", {"use_bidirectional_attention": True}, "bidirectional"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
        ("gpt2", {"activation_function": "mish"}, "mish"),
    ],
)
def test_what_a_family_does_not_serve_is_refused(
    family: str, options: dict[str, Any], words: str, make_writer_checkpoint: Make
) -> None:
    folder, _ = make_writer_checkpoint(family, **options)
    with pytest.raises(StudentError, match=words):
        read_student(folder, "generate")


def test_families_with_windows_on_every_other_layer_are_not_described(make_writer_checkpoint: Make) -> None:
    folder, _ = make_writer_checkpoint("llama")
    text = (folder / "config.json").read_text().replace('"llama"', '"gemma3_text"')
    (folder / "config.json").write_text(text)
    with pytest.raises(StudentError, match="'gemma3_text' is not described"):
        read_student(folder, "generate")


def test_the_program_is_run_by_the_class_of_its_kind(
    make_writer: Callable[..., Student], make_student: Callable[..., Student]
) -> None:
    assert type(graph_of(make_writer("llama"), "w4a8-dynamic", dropout=0.1)) is TorchDecoder
    assert type(graph_of(make_student("bert"), "w8a8-static")) is TorchGraph
