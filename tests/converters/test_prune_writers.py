"""Pruned writers: what has no effect leaves without a trace, and what remains is an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from edgescribe.converters.anatomy import DECODERS, Parameter
from edgescribe.converters.importance import measure_importance
from edgescribe.converters.prune import Pruning, prune, prune_positions
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.converters.training_data import make_examples
from edgescribe.converters.vocabulary import trim_vocabulary, trimmed_size
from edgescribe.errors import RecipeError
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow  # many families and precisions

MakeWriter = Callable[..., Student]
LogitsOf = Callable[..., torch.Tensor]
few = settings(max_examples=12, deadline=None, derandomize=True)
families = st.sampled_from(DECODERS)
free_families = st.sampled_from([family for family in DECODERS if family != "gpt2"])
seeds = st.integers(0, 10**6)
ties = st.booleans()
CONVERSATION = [{"role": "user", "content": "two players"}]


def in_double(student: Student) -> Student:
    return student.with_state({name: tensor.double() for name, tensor in student.state.items()})


def pruned(student: Student, pruning: Pruning, texts: list[str]) -> Student:
    return prune(student, pruning, make_examples(student, texts, None), texts)


def out_axis(parameter: Parameter) -> int:
    """The axis of a linear layer's weight along which its results lie."""
    return 1 if parameter.matrix == "in_out" else 0


def silence(student: Student, role: str, gone: torch.Tensor) -> Student:
    """The student with units of a role nought where they are read."""
    state = {}
    for name, tensor in student.state.items():
        parameter, tensor = student.layout[name], tensor.clone()
        if parameter.kind == "matrix" and "hidden" in parameter.axes and role in parameter.axes:
            axis = parameter.axes.index(role)  # type: ignore[arg-type]
            if axis != out_axis(parameter):
                tensor.index_fill_(axis, gone, 0.0)
        state[name] = tensor
    return student.with_state(state)


def units_of(student: Student, groups: list[int]) -> torch.Tensor:
    """Places of all the groups' heads."""
    width = student.shape.group * student.shape.head_width
    return torch.tensor([group * width + unit for group in groups for unit in range(width)])


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype == torch.float64
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@few
@given(free_families, ties, seeds, st.data())
def test_groups_without_effect_leave_no_trace(
    make_writer: MakeWriter,
    logits_of: LogitsOf,
    sentences: list[str],
    family: str,
    tied: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    student = in_double(make_writer(family, seed=seed, tie_word_embeddings=tied))
    gone = data.draw(st.sampled_from([[0], [1], [2], [0, 2], [1, 2]]))
    student = silence(student, "heads", units_of(student, gone))
    smaller = pruned(student, Pruning(heads=9 - 3 * len(gone)), sentences)
    shape = smaller.shape
    assert (shape.heads, shape.kv_heads, shape.head_width, shape.hidden) == (9 - 3 * len(gone), 3 - len(gone), 4, 18)
    assert_same_logits(logits_of(smaller, sentences), logits_of(student, sentences))


@few
@given(families, ties, seeds, st.data())
def test_neurons_without_effect_leave_no_trace(
    make_writer: MakeWriter,
    logits_of: LogitsOf,
    sentences: list[str],
    family: str,
    tied: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    student = in_double(make_writer(family, seed=seed, tie_word_embeddings=tied))
    count = student.shape.neurons
    gone = data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count - 1))]
    student = silence(student, "neurons", torch.tensor(gone))
    smaller = pruned(student, Pruning(neurons=count - len(gone)), sentences)
    assert smaller.shape.neurons == count - len(gone)
    assert_same_logits(logits_of(smaller, sentences), logits_of(student, sentences))


@few
@given(families, ties, seeds, st.sets(st.sampled_from([0, 1, 2]), min_size=1, max_size=2))
def test_layers_without_effect_leave_no_trace(
    make_writer: MakeWriter,
    logits_of: LogitsOf,
    sentences: list[str],
    family: str,
    tied: bool,
    seed: int,
    idle: set[int],
) -> None:
    layers = {"n_layer" if family == "gpt2" else "num_hidden_layers": 4}
    student = in_double(make_writer(family, seed=seed, tie_word_embeddings=tied, **layers))
    state = {}
    for name, tensor in student.state.items():
        parameter = student.layout[name]
        adds = parameter.axes[out_axis(parameter)] == "hidden" if parameter.kind == "matrix" else parameter.axes == (
            "hidden",
        ) and parameter.kind == "bias"  # fmt: skip
        is_idle = student.anatomy.layer_number(name) in idle
        state[name] = torch.zeros_like(tensor) if is_idle and adds else tensor
    student = student.with_state(state)
    smaller = pruned(student, Pruning(layers=4 - len(idle)), sentences)
    assert smaller.shape.layers == 4 - len(idle)
    assert_same_logits(logits_of(smaller, sentences), logits_of(student, sentences))


def with_idle_units(student: Student, kept: list[int]) -> Student:
    """The student with all hidden units but the kept ones nought at every place.

    Under layer norms the kept ones come in pairs of opposite values, so that the mean is nought too.
    """
    paired = student.anatomy.model_type == "gpt2"
    gone = torch.tensor([unit for unit in range(student.shape.hidden) if unit not in kept])
    first, second = torch.tensor(kept[0::2]), torch.tensor(kept[1::2])
    state = {}
    for name, tensor in student.state.items():
        parameter, tensor = student.layout[name], tensor.clone()
        is_norm = parameter.kind == "norm" and parameter.axes == ("hidden",)
        gives = parameter.kind == "table" or (parameter.kind == "bias" and parameter.axes == ("hidden",))
        if parameter.kind == "matrix":
            gives = parameter.axes[out_axis(parameter)] == "hidden"
        axis = len(parameter.axes) - 1 if parameter.kind != "matrix" else out_axis(parameter)
        if gives or (is_norm and name.endswith("bias")):
            tensor.index_fill_(axis, gone, 0.0)
            if paired:
                tensor.index_copy_(axis, second, -tensor.index_select(axis, first))
        elif is_norm and paired:
            tensor[second] = tensor[first]
        state[name] = tensor
    return student.with_state(state)


@few
@given(families, ties, seeds, st.data())
def test_hidden_units_without_effect_leave_no_trace(
    make_writer: MakeWriter,
    logits_of: LogitsOf,
    sentences: list[str],
    family: str,
    tied: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    # A norm's epsilon counts for more over fewer units, where a token's few values are small.
    none = {"layer_norm_epsilon" if family == "gpt2" else "rms_norm_eps": 1e-16}
    student = in_double(make_writer(family, seed=seed, tie_word_embeddings=tied, **none))
    size = data.draw(st.sampled_from({"llama": [9], "gpt2": [4, 8]}.get(family, [5, 6, 13])))
    kept = sorted(data.draw(st.permutations(range(student.shape.hidden)))[:size])
    student = with_idle_units(student, kept)
    if family == "gpt2":
        student = silence(student, "heads", units_of(student, list(range((student.shape.hidden - size) // 4))))
    smaller = pruned(student, Pruning(hidden=size), sentences)
    assert smaller.shape.hidden == size
    assert smaller.shape.head_width == 4
    assert_same_logits(logits_of(smaller, sentences), logits_of(student, sentences))


@few
@given(families, ties, seeds, st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_vocabulary_that_no_text_uses_leaves_no_trace(
    make_writer: MakeWriter,
    logits_of: LogitsOf,
    sentences: list[str],
    family: str,
    tied: bool,
    seed: int,
    domain: list[int],
) -> None:
    student = in_double(make_writer(family, seed=seed, tie_word_embeddings=tied))
    texts = [sentences[number] for number in domain]
    smaller = pruned(student, Pruning(vocabulary=0), texts)
    before, after = (each.tokenizer.get_vocab(with_added_tokens=True) for each in (student, smaller))
    assert len(after) == smaller.shape.vocabulary < student.shape.vocabulary
    rows = [before[token] for token in sorted(after, key=after.__getitem__)]
    assert_same_logits(logits_of(smaller, texts), logits_of(student, texts)[:, rows])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(domain=st.lists(st.text(max_size=30), min_size=1, max_size=4), other=st.text(max_size=40))
def test_any_text_still_comes_back(make_writer: MakeWriter, domain: list[str], other: str) -> None:
    student = once(make_writer)
    smaller = trim_vocabulary(student, domain)
    for text in (*domain, other):
        ids = smaller.tokenizer.encode(text).ids
        assert max(ids, default=0) < smaller.shape.vocabulary
        assert smaller.tokenizer.decode(ids, skip_special_tokens=False) == text
    for text in domain:
        assert smaller.tokenizer.encode(text).tokens == student.tokenizer.encode(text).tokens


WRITERS: dict[str, Student] = {}


def once(make_writer: MakeWriter) -> Student:
    if "qwen3" not in WRITERS:
        WRITERS["qwen3"] = make_writer("qwen3")
    return WRITERS["qwen3"]


def test_what_a_template_says_stays_whole(make_writer: MakeWriter) -> None:
    """Roles are cut as before though no text of the domain has them."""
    student = once(make_writer)
    smaller = trim_vocabulary(student, ["chess"])
    prompt = "<|im_start|>system\n\n<|im_start|>user\n\n<|im_end|>\n<|im_start|>assistant\n"
    assert smaller.tokenizer.encode(prompt).tokens == student.tokenizer.encode(prompt).tokens
    words = "network documentation photographs"
    assert len(smaller.tokenizer.encode(words).tokens) > len(student.tokenizer.encode(words).tokens)
    with pytest.raises(RecipeError, match="template's words"):
        trim_vocabulary(student, ["chess"], smaller.shape.vocabulary - 5)
    assert trimmed_size(student, ["chess"]) == smaller.shape.vocabulary


def check_plain_checkpoint(student: Student, folder: Path, texts: list[str], logits: torch.Tensor) -> None:
    """The folder loads with transformers alone, cuts texts alike and answers alike (both in float64)."""
    student.save(folder)
    model, found = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model, tokenizer = model.double(), transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert ids[0].tolist() == student.tokenizer.encode(text).ids
        with torch.no_grad():
            rows.append(model(ids).logits[0])
    # transformers' norms are made in float32 whatever the weights are.
    torch.testing.assert_close(torch.cat(rows), logits, rtol=0, atol=1e-5)
    named = {name: tokenizer.convert_tokens_to_ids(token) for name, token in
             (("bos", "<|im_start|>"), ("eos", "<|im_end|>"), ("pad", "<|endoftext|>"))}  # fmt: skip
    defaults = model.generation_config
    assert defaults.eos_token_id == [named["eos"], named["pad"]]
    assert (defaults.bos_token_id, defaults.pad_token_id) == (named["bos"], named["pad"])
    assert model.config.eos_token_id == named["eos"]
    assert student.pad_id == named["pad"]
    assert student.eos_ids == (named["eos"], named["pad"])
    prompt = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\ntwo players<|im_end|>\n<|im_start|>assistant\n"


SIZES: list[tuple[str, dict[str, int]]] = [
    ("llama", {"heads": 6, "hidden": 12}),
    ("qwen2", {"heads": 6, "hidden": 11}),
    ("qwen3", {"heads": 3}),
    ("gemma", {"heads": 6, "hidden": 7}),
    ("gpt2", {"heads": 2}),
]


@pytest.mark.parametrize(("family", "sizes"), SIZES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_pruned_writer_is_a_plain_checkpoint(
    family: str,
    sizes: dict[str, int],
    tied: bool,
    make_writer: MakeWriter,
    logits_of: LogitsOf,
    sentences: list[str],
    tmp_path: Path,
) -> None:
    student = make_writer(family, tie_word_embeddings=tied, **{
        "gpt2": {"n_inner": None}, "qwen2": {"head_dim": 2}
    }.get(family, {}))  # fmt: skip
    texts = [sentences[0], sentences[1][:30]]
    smaller = pruned(student, Pruning(layers=1, neurons=7, positions=30, vocabulary=0, **sizes), texts)
    shape = smaller.shape
    assert (shape.layers, shape.neurons, shape.positions, shape.head_width) == (1, 7, 30, student.shape.head_width)
    assert (shape.heads, shape.group) == (sizes["heads"], student.shape.group)
    assert smaller.parameter_count() < student.parameter_count()
    check_plain_checkpoint(smaller, tmp_path / "pruned", texts, logits_of(in_double(smaller), texts))
    again = read_student(tmp_path / "pruned", "generate")
    assert all(torch.equal(again.state[name], tensor) for name, tensor in smaller.state.items())
    assert (again.max_tokens, again.pad_id, again.eos_ids) == (30, smaller.pad_id, smaller.eos_ids)


def test_special_tokens_are_renumbered(
    make_writer: MakeWriter, writer_tokenizer: Callable[[], Any], logits_of: LogitsOf, sentences: list[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """With special tokens at the end of the vocabulary, as Qwen and Llama 3 have them."""
    student = make_writer("llama", vocab_size=401)
    tokenizer = writer_tokenizer()
    tokenizer.add_special_tokens(["<|begin|>", "<|turn|>", "<|fill|>"])
    ids = [tokenizer.token_to_id(token) for token in ("<|begin|>", "<|turn|>", "<|fill|>")]
    assert ids == [393, 394, 395]
    numbers = {"bos_token_id": 393, "eos_token_id": [394, 2], "pad_token_id": 395}
    student = replace(student, tokenizer=tokenizer, config=student.config | numbers, pad_id=395,
                      generation=student.generation | numbers | {"suppress_tokens": [5, 393]})  # fmt: skip
    smaller = trim_vocabulary(student, sentences[:2])
    new = [smaller.tokenizer.token_to_id(token) for token in ("<|begin|>", "<|turn|>", "<|fill|>", "<|im_end|>")]
    size = smaller.shape.vocabulary
    assert new[:3] == [size - 3, size - 2, size - 1]
    for settings_now in (smaller.config, smaller.generation):
        assert settings_now["bos_token_id"] == new[0]
        assert settings_now["eos_token_id"] == [new[1], new[3]]
        assert settings_now["pad_token_id"] == new[2]
    assert smaller.pad_id == new[2]
    kept = student.tokenizer.id_to_token(5)
    assert smaller.generation["suppress_tokens"] == [smaller.tokenizer.token_to_id(kept), new[0]]
    smaller.save(tmp_path / "saved")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.encode(sentences[0] + "<|turn|>") == smaller.tokenizer.encode(sentences[0] + "<|turn|>").ids


def test_gemma_over_fewer_units_keeps_its_scale(
    make_writer: MakeWriter, logits_of: LogitsOf, sentences: list[str]
) -> None:
    """Embeddings keep their values though they are scaled by the width."""
    student = in_double(make_writer("gemma"))
    smaller = pruned(student, Pruning(hidden=9), sentences)
    table, before = smaller.state["model.embed_tokens.weight"], student.state["model.embed_tokens.weight"]
    assert all(any(torch.equal(column, other) for other in before.T) for column in table.T)


@pytest.mark.parametrize("family", DECODERS)
def test_positions_beyond_the_texts_leave_no_trace(
    family: str, make_writer: MakeWriter, logits_of: LogitsOf, sentences: list[str]
) -> None:
    student = in_double(make_writer(family))
    smaller = prune_positions(student, 16)
    assert (smaller.max_tokens, smaller.shape.positions) == (16, 16)
    short = [text[:10] for text in sentences]
    assert_same_logits(logits_of(smaller, short), logits_of(student, short))


def test_layers_say_still_of_what_kind_they_are(make_writer: MakeWriter, sentences: list[str]) -> None:
    student = make_writer("qwen2", num_hidden_layers=3)
    assert len(student.config["layer_types"]) == 3
    assert pruned(student, Pruning(layers=2), sentences).config["layer_types"] == ["full_attention"] * 2


@pytest.mark.parametrize(
    ("family", "asked", "words"),
    [
        ("llama", {"heads": 12}, "12 heads; this student has 9"),
        ("llama", {"heads": 4}, "multiple of 3"),
        ("llama", {"hidden": 10}, "hidden width of 10 with 9 heads"),
        ("llama", {"hidden": 10, "heads": 6}, "hidden width of 10 with 6 heads"),
        ("qwen3", {"hidden": 19}, "19 hidden"),
        ("gpt2", {"hidden": 7}, "hidden = heads x head width"),
        ("gemma", {"vocabulary": 100}, "must stay"),
    ],
)
def test_sizes_that_cannot_be_had(
    family: str, asked: dict[str, int], words: str, make_writer: MakeWriter, sentences: list[str]
) -> None:
    with pytest.raises(RecipeError, match=words):
        pruned(make_writer(family), Pruning(**asked), sentences)


def test_units_that_foresee_the_text_score_highest(make_writer: MakeWriter, sentences: list[str]) -> None:
    """The score of a group is what the loss loses, to first order, when all its weights shrink together."""
    student = in_double(make_writer("llama", num_hidden_layers=1))
    examples = make_examples(student, sentences, None)
    scores = measure_importance(student, examples, batch_size=10, batches=1)
    assert [len(each) for each in scores.heads] == [3]

    def loss(factor: float, group: int) -> float:
        state = {}
        for name, tensor in student.state.items():
            tensor = tensor.clone()
            for axis, role in enumerate(student.layout[name].axes):
                if role in ("heads", "kv_heads"):
                    width = 4 * (3 if role == "heads" else 1)
                    tensor.narrow(axis, group * width, width).mul_(factor)
            state[name] = tensor
        graph, total, count = graph_of(student.with_state(state)), 0.0, 0
        for text in sentences:
            ids = torch.tensor([student.tokenizer.encode(text).ids])
            with torch.no_grad():
                logits = graph.run({"input_ids": ids})["logits"][0]
            total += float(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
        return total / count

    for group in range(3):
        slope = (loss(1 + 1e-4, group) - loss(1 - 1e-4, group)) / 2e-4
        assert scores.heads[0][group].item() == pytest.approx(slope**2, rel=1e-3)
