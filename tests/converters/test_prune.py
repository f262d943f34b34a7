"""Pruned students: what has no effect leaves without a trace, and what remains is an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edgescribe.converters.anatomy import ENCODERS
from edgescribe.converters.prune import Pruning, prune, prune_positions
from edgescribe.converters.student import Student
from edgescribe.converters.training_data import encode_texts, make_examples
from edgescribe.errors import RecipeError
from hypothesis import given, settings
from hypothesis import strategies as st

TASKS = ("classify", "tag", "embed")
AUTO = {
    "classify": "AutoModelForSequenceClassification",
    "tag": "AutoModelForTokenClassification",
    "embed": "AutoModel",
}
FOUR_LAYERS = {"distilbert": {"n_layers": 4}, "xlnet": {"n_layer": 4}}
few = settings(max_examples=14, deadline=None)
families = st.sampled_from(ENCODERS)
tasks = st.sampled_from(TASKS)
seeds = st.integers(0, 10**6)


def pruned(student: Student, pruning: Pruning, texts: list[str]) -> Student:
    return prune(student, pruning, make_examples(student, texts, None), texts)


def is_writer(student: Student, name: str) -> bool:
    """Whether the first axis of a tensor is what it gives out."""
    parameter = student.layout[name]
    return parameter.kind in ("matrix", "bias") and parameter.matrix != "in_heads"


def antisymmetric(tensor: torch.Tensor, axis: int, kept: list[int]) -> torch.Tensor:
    """``tensor`` with its kept units in pairs of opposite values, and the others nought, along ``axis``."""
    made = torch.zeros_like(tensor)
    first = torch.tensor(kept[0::2])
    values = tensor.index_select(axis, first)
    made.index_copy_(axis, first, values)
    made.index_copy_(axis, torch.tensor(kept[1::2]), -values)
    return made


def without_heads_and_units(student: Student, heads: list[int], kept: list[int]) -> Student:
    """The student with the heads silenced and all hidden units but the kept ones nought at every place.

    The kept units come in pairs of opposite values, so that the mean that layer norms subtract is nought too.
    """
    shape, anatomy, state = student.shape, student.anatomy, {}
    follows = anatomy.embedding_follows_hidden(student.state)
    columns = torch.tensor([head * shape.head_width + unit for head in heads for unit in range(shape.head_width)])
    for name, tensor in student.state.items():
        parameter, tensor = student.layout[name], tensor.clone()
        for axis, role in enumerate(parameter.axes):
            is_hidden = role == "hidden" or (role == "embedding" and follows)
            if is_hidden and parameter.kind == "norm" and name.endswith("weight"):
                tensor[kept[1::2]] = tensor[kept[0::2]]
            elif is_hidden and (parameter.kind in ("norm", "table") or (axis == 0 and is_writer(student, name))):
                tensor = antisymmetric(tensor, axis, kept)
            elif role == "heads" and axis == 1:
                tensor[:, columns] = 0
            elif role == "head" and parameter.matrix == "out_heads":
                tensor[:, heads] = 0
            elif role == "sinusoids":
                tensor.zero_()
        state[name] = tensor
    return student.with_state(state)


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Of two students in float64: what is left is the epsilon of layer norms, a part in 10^9 and less."""
    assert found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@few
@given(families, tasks, seeds, st.data())
def test_heads_and_units_without_effect_leave_no_trace(
    make_exact_student: Callable[..., Student],
    answers_of: Callable[..., torch.Tensor],
    sentences: list[str],
    family: str,
    task: str,
    seed: int,
    data: st.DataObject,
) -> None:
    student = make_exact_student(family, task, seed=seed)
    shape = student.shape
    gone = data.draw(st.integers(1, shape.heads - 1))
    heads = data.draw(st.permutations(range(shape.heads)))[:gone]
    kept = sorted(data.draw(st.permutations(range(shape.hidden)))[: (shape.heads - gone) * shape.head_width])
    student = without_heads_and_units(student, list(heads), kept)
    smaller = pruned(student, Pruning(heads=shape.heads - gone), sentences)
    assert smaller.shape.hidden == len(kept)
    assert smaller.shape.heads == shape.heads - gone
    expected = answers_of(student, sentences)
    given_now = answers_of(smaller, sentences)
    if task == "embed":
        expected = expected[:, kept]
    assert_same_logits(given_now, expected)


@few
@given(families, tasks, seeds, st.data())
def test_neurons_without_effect_leave_no_trace(
    make_exact_student: Callable[..., Student],
    answers_of: Callable[..., torch.Tensor],
    sentences: list[str],
    family: str,
    task: str,
    seed: int,
    data: st.DataObject,
) -> None:
    student = make_exact_student(family, task, seed=seed)
    gone = data.draw(st.integers(1, student.shape.neurons - 1))
    state = {name: tensor.clone() for name, tensor in student.state.items()}
    for name, tensor in state.items():
        if student.layout[name].axes == ("hidden", "neurons"):
            tensor[:, data.draw(st.permutations(range(student.shape.neurons)))[:gone]] = 0
    student = student.with_state(state)
    smaller = pruned(student, Pruning(neurons=student.shape.neurons - gone), sentences)
    assert smaller.parameter_count() < student.parameter_count()
    assert_same_logits(answers_of(smaller, sentences), answers_of(student, sentences))


def with_idle_layers(student: Student, idle: Sequence[int]) -> Student:
    """The student with layers that add nothing, between norms that change nothing (in ALBERT: all layers)."""
    state = {}
    for name, tensor in student.state.items():
        parameter, number = student.layout[name], student.anatomy.layer_number(name)
        if parameter.kind == "norm":
            tensor = torch.ones_like(tensor) if name.endswith("weight") else torch.zeros_like(tensor)
        is_layer = "layer" in name and (number in idle or student.anatomy.shared_layers)
        if is_layer and is_writer(student, name) and parameter.axes[0] == "hidden":
            tensor = torch.zeros_like(tensor)
        state[name] = tensor
    return student.with_state(state)


@few
@given(families, tasks, seeds, st.sets(st.sampled_from([1, 2]), min_size=1))
def test_layers_without_effect_leave_no_trace(
    make_exact_student: Callable[..., Student],
    answers_of: Callable[..., torch.Tensor],
    sentences: list[str],
    family: str,
    task: str,
    seed: int,
    idle: set[int],
) -> None:
    student = make_exact_student(family, task, seed=seed, **FOUR_LAYERS.get(family, {"num_hidden_layers": 4}))
    student = with_idle_layers(student, sorted(idle))
    smaller = pruned(student, Pruning(layers=4 - len(idle)), sentences)
    assert smaller.shape.layers == 4 - len(idle)
    assert_same_logits(answers_of(smaller, sentences), answers_of(student, sentences))


@few
@given(families, tasks, seeds, st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_vocabulary_that_no_text_uses_leaves_no_trace(
    make_exact_student: Callable[..., Student],
    answers_of: Callable[..., torch.Tensor],
    sentences: list[str],
    family: str,
    task: str,
    seed: int,
    domain: list[int],
) -> None:
    student = make_exact_student(family, task, seed=seed)
    texts = [sentences[number] for number in domain]
    smaller = pruned(student, Pruning(vocabulary=0), texts)
    assert smaller.shape.vocabulary < student.shape.vocabulary
    assert_same_logits(answers_of(smaller, texts), answers_of(student, texts))


@pytest.mark.parametrize("family", ENCODERS)
def test_positions_beyond_the_texts_leave_no_trace(
    family: str,
    make_exact_student: Callable[..., Student],
    answers_of: Callable[..., torch.Tensor],
    sentences: list[str],
) -> None:
    student = make_exact_student(family)
    short = [sentence[:8] for sentence in sentences]
    smaller = prune_positions(student, 16)
    assert smaller.max_tokens == 16
    assert smaller.shape.positions == 16 + student.shape.position_offset
    assert_same_logits(answers_of(smaller, short), answers_of(student, short))


def check_plain_checkpoint(student: Student, folder: Path, texts: list[str], answers: torch.Tensor) -> None:
    """The folder loads with transformers alone, cuts texts alike and answers alike (both in float64)."""
    import transformers

    student.save(folder)
    load = getattr(transformers, AUTO[student.task])
    model, found = load.from_pretrained(folder, output_loading_info=True)
    model = model.double()
    body = {name for name in found["missing_keys"] if "pooler" not in name and "mask_emb" not in name}
    assert not body
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text, (ids, types) in zip(texts, encode_texts(student.tokenizer, texts, student.max_tokens), strict=True):
        feeds = tokenizer(text, return_tensors="pt", truncation=True, max_length=student.max_tokens)
        assert feeds["input_ids"][0].tolist() == ids.tolist()
        asked = {"input_ids": feeds["input_ids"], "attention_mask": feeds["attention_mask"]}
        if student.anatomy.model_type == "xlnet":
            asked["token_type_ids"] = torch.from_numpy(types)[None]
        with torch.no_grad():
            given = model(**asked)
        if student.task == "embed":
            rows.append(torch.nn.functional.normalize(given.last_hidden_state.mean(1), dim=-1))
        else:
            rows.append(given.logits.reshape(-1, given.logits.shape[-1]))
    # Tables of transformers' own, as XLNet's sinusoids, are made in float32.
    torch.testing.assert_close(torch.cat(rows), answers, rtol=0, atol=1e-5)
    assert tokenizer.pad_token_id == student.pad_id
    assert model.config.pad_token_id == student.pad_id
    assert tokenizer.model_max_length == student.max_tokens


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ENCODERS)
def test_a_pruned_student_is_a_plain_checkpoint(
    family: str,
    task: str,
    make_student: Callable[..., Student],
    in_double: Callable[[Student], Student],
    answers_of: Callable[..., torch.Tensor],
    sentences: list[str],
    tmp_path: Path,
) -> None:
    student = make_student(family, task)
    asked = Pruning(layers=1, heads=2, neurons=7, positions=30, vocabulary=0)
    smaller = pruned(student, asked, sentences[:4])
    shape = smaller.shape
    assert (shape.layers, shape.heads, shape.hidden, shape.neurons) == (1, 2, 8, 7)
    check_plain_checkpoint(smaller, tmp_path / "pruned", sentences[:4], answers_of(in_double(smaller), sentences[:4]))


def test_electra_whose_embeddings_lie_on_the_hidden_width(
    make_student: Callable[..., Student],
    in_double: Callable[[Student], Student],
    answers_of: Callable[..., torch.Tensor],
    sentences: list[str],
    tmp_path: Path,
) -> None:
    smaller = pruned(make_student("electra", embedding_size=12), Pruning(heads=2), sentences)
    assert smaller.shape.embedding == smaller.shape.hidden == 8
    check_plain_checkpoint(smaller, tmp_path / "pruned", sentences, answers_of(in_double(smaller), sentences))


def test_roberta_whose_padding_token_moves(
    make_student: Callable[..., Student],
    make_tokenizer: Callable[..., Any],
    in_double: Callable[[Student], Student],
    answers_of: Callable[..., torch.Tensor],
    sentences: list[str],
    tmp_path: Path,
) -> None:
    """Positions are counted from the padding token's number, so that rows of their table leave with the vocabulary."""
    tokenizer = make_tokenizer("roberta")
    tokenizer.add_special_tokens(["<nothing>"])
    number = tokenizer.token_to_id("<nothing>")
    student = make_student("roberta", tokenizer=tokenizer, pad_token_id=number, max_position_embeddings=number + 40)
    assert student.shape.position_offset == number + 1
    student = replace(student, tokenizer_config={**student.tokenizer_config, "pad_token": "<nothing>"}, pad_id=number)
    smaller = pruned(student, Pruning(vocabulary=0), sentences[:3])
    assert smaller.shape.position_offset < student.shape.position_offset
    expected = answers_of(in_double(student), sentences[:3])
    assert_same_logits(answers_of(in_double(smaller), sentences[:3]), expected)
    check_plain_checkpoint(smaller, tmp_path / "pruned", sentences[:3], expected)


def test_heads_of_mpnet_go_together(make_student: Callable[..., Student], sentences: list[str]) -> None:
    """One bias for each head serves all layers, so that the same heads must go in each."""
    student = make_student("mpnet")
    smaller = pruned(student, Pruning(heads=1), sentences)
    column = smaller.state["mpnet.encoder.relative_attention_bias.weight"][:, 0]
    table = student.state["mpnet.encoder.relative_attention_bias.weight"]
    (head,) = [number for number in range(3) if torch.equal(table[:, number], column)]
    for layer in range(2):
        name = f"mpnet.encoder.layer.{layer}.attention.attn.q.bias"
        assert torch.equal(smaller.state[name], student.state[name][4 * head : 4 * head + 4])


def test_position_keys_of_xlnet_are_fitted_to_the_new_width(
    make_student: Callable[..., Student], sentences: list[str]
) -> None:
    """Near offsets' keys stay nearer than by leaving sinusoids out; frequencies follow from the width."""
    from edgescribe.converters.families.xlnet import sinusoids

    student = make_student("xlnet", d_model=24, n_head=3)
    smaller = pruned(student, Pruning(heads=2), sentences)
    offsets = torch.arange(-student.max_tokens, student.max_tokens + 1).numpy()
    name = "transformer.layer.0.rel_attn.r"
    before = torch.from_numpy(sinusoids(24)(offsets)) @ student.state[name].reshape(24, -1)
    fitted = torch.from_numpy(sinusoids(16)(offsets)) @ smaller.state[name].reshape(16, -1)
    heads = before.reshape(-1, 3, 8)
    errors = [
        float((fitted.reshape(-1, 2, 8) - heads[:, list(pair)]).square().mean()) for pair in ((0, 1), (0, 2), (1, 2))
    ]
    assert min(errors) < 0.5 * float(heads.square().mean())


@pytest.mark.parametrize(
    ("family", "asked", "words"),
    [
        ("bert", {"heads": 4}, "4 heads; this student has 3"),
        ("bert", {"layers": 0}, "0 layers"),
        ("bert", {"neurons": 11}, "11 neurons"),
        ("bert", {"hidden": 7}, "hidden = heads x head width"),
        ("bert", {"hidden": 8, "heads": 3}, "give 12 with 3 heads"),
        ("bert", {"vocabulary": -1}, "vocabulary of -1"),
        ("bert", {"vocabulary": 20}, "must stay"),
        ("bert", {"positions": 33}, "33 positions"),
        ("electra", {"heads": 2}, "no projection"),
    ],
)
def test_sizes_that_cannot_be_had(
    family: str, asked: dict[str, int], words: str, make_student: Callable[..., Student], sentences: list[str]
) -> None:
    student = make_student(family, **({"embedding_size": 8} if family == "electra" else {}))
    with pytest.raises(RecipeError, match=words):
        pruned(student, Pruning(**asked), sentences)


def test_xlnet_keeps_an_even_width(make_student: Callable[..., Student], sentences: list[str]) -> None:
    student = make_student("xlnet", d_model=6, n_head=2)
    with pytest.raises(RecipeError, match="even"):
        pruned(student, Pruning(heads=1), sentences)


def test_units_are_scored_on_data(make_student: Callable[..., Student], sentences: list[str]) -> None:
    with pytest.raises(RecipeError, match="data"):
        prune(make_student("bert"), Pruning(neurons=3), [], sentences)


def test_pruning_is_the_same_each_time(make_student: Callable[..., Student], sentences: list[str]) -> None:
    asked = Pruning(heads=2, neurons=6, layers=1)
    student = make_student("bert")
    first, second = (pruned(student, asked, sentences) for _ in range(2))
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
