"""Pruned summarisers: what has no effect leaves without a trace, and what remains is an ordinary checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from edgescribe.__main__ import run
from edgescribe.converters.anatomy import ENCODER_DECODERS, HEAD_KINDS
from edgescribe.converters.families import bart_layers
from edgescribe.converters.importance import measure_importance, score_units
from edgescribe.converters.prune import Pruning, prune, prune_positions
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.summary_data import make_summary_examples
from edgescribe.errors import RecipeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

pytestmark = pytest.mark.slow  # many families and sizes

Make = Callable[..., Student]
Logits = Callable[..., torch.Tensor]
few = settings(max_examples=16, deadline=None, derandomize=True)
families = st.sampled_from(ENCODER_DECODERS)
t5_families = st.sampled_from(("t5", "mt5"))
untied = st.booleans()
seeds = st.integers(0, 10**6)
SAME_HEADS = {"encoder_attention_heads": 3, "decoder_attention_heads": 6}


@pytest.fixture(autouse=True)
def exact_norms() -> Iterator[None]:
    """BART's and Marian's norms without their epsilon, which counts for more over fewer units."""
    before, bart_layers.EPS = bart_layers.EPS, 1e-16
    yield
    bart_layers.EPS = before


@pytest.fixture(scope="session")
def make_exact(make_summarizer: Make, in_double: Callable[[Student], Student]) -> Make:
    """As ``make_summarizer``, in float64."""
    return lambda family, **options: in_double(make_summarizer(family, **options))


def options_of(family: str, untied: bool, **others: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"untied": untied} if family in ("t5", "mt5") else {"tie_word_embeddings": not untied}
    return {**options, **others}


def pruned(student: Student, pruning: Pruning, sentences: list[str]) -> Student:
    examples = make_summary_examples(student, sentences, sentences[3:] + sentences[:3])
    return prune(student, pruning, examples, sentences)


def silence(student: Student, gone: dict[tuple[str, int], list[int]], widths: dict[str, int]) -> Student:
    """The student with units of a kind and layer nought where they are read."""
    state = {}
    for name, tensor in student.state.items():
        parameter, tensor = student.layout[name], tensor.clone()
        layer = student.anatomy.layer_number(name)
        if parameter.kind == "matrix" and len(parameter.axes) == 2:
            units = gone.get((parameter.axes[1], layer or 0), [])
            width = widths.get(parameter.axes[1], 1)
            places = [unit * width + place for unit in units for place in range(width)]
            tensor[:, places] = 0.0
        state[name] = tensor
    return student.with_state(state)


def draw_gone(
    data: st.DataObject, student: Student, kinds: tuple[str, ...], count: int
) -> dict[tuple[str, int], list[int]]:
    """``count`` units of each layer, the same ones in all layers where these are tied."""
    gone: dict[tuple[str, int], list[int]] = {}
    for kind, (layers, units) in student.anatomy.unit_counts(student.shape).items():
        if kind not in kinds:
            continue
        for layer in range(layers):
            same = kind in student.anatomy.tied_kinds and layer
            gone[kind, layer] = gone[kind, 0] if same else data.draw(st.permutations(range(units)))[:count]
    return gone


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype == torch.float64
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@few
@given(t5_families, untied, st.sampled_from(["relu", "gated-gelu"]), seeds, st.integers(1, 2), st.data())
def test_heads_without_effect_leave_no_trace(
    make_exact: Make, pair_logits: Logits, sentences: list[str],
    family: str, untied: bool, proj: str, seed: int, count: int, data: st.DataObject,
) -> None:  # fmt: skip
    """With their relative positions: one choice for a half, but those that look at the source are free by layer."""
    student = make_exact(family, seed=seed, untied=untied, feed_forward_proj=proj)
    gone = draw_gone(data, student, HEAD_KINDS, count)
    student = silence(student, gone, dict.fromkeys(HEAD_KINDS, 5))
    smaller = pruned(student, Pruning(heads=3 - count), sentences)
    shape = smaller.shape
    assert (shape.heads, shape.decoder_heads, shape.head_width, shape.hidden) == (3 - count, 3 - count, 5, 12)
    biases = [tensor for name, tensor in smaller.state.items() if "relative" in name]
    assert [tuple(each.shape) for each in biases] == [(8, 3 - count)] * 2
    assert_same(pair_logits(smaller, sentences, sentences), pair_logits(student, sentences, sentences))


@few
@given(families, untied, seeds, st.data())
def test_neurons_without_effect_leave_no_trace(
    make_exact: Make, pair_logits: Logits, sentences: list[str],
    family: str, untied: bool, seed: int, data: st.DataObject,
) -> None:  # fmt: skip
    student = make_exact(family, **options_of(family, untied, seed=seed))
    count = data.draw(st.integers(1, 9))
    gone = draw_gone(data, student, ("neurons",), count)
    pruning, after = Pruning(neurons=10 - count), 10 - count
    if family in ("t5", "mt5"):
        gone |= draw_gone(data, student, ("decoder_neurons",), count)
    else:
        other = data.draw(st.integers(1, 6))
        gone |= draw_gone(data, student, ("decoder_neurons",), other)
        pruning, after = Pruning(neurons=10 - count, decoder_neurons=7 - other), 7 - other
    student = silence(student, gone, {})
    smaller = pruned(student, pruning, sentences)
    assert (smaller.shape.neurons, smaller.shape.decoder_neurons) == (10 - count, after)
    assert_same(pair_logits(smaller, sentences, sentences), pair_logits(student, sentences, sentences))


def idle_layers(student: Student, in_decoder: bool, idle: set[int]) -> Student:
    """The student with layers that add nothing, and norms that leave a normalised vector as it is."""
    post_norm = student.anatomy.model_type in ("bart", "marian")
    state = {}
    for name, tensor in student.state.items():
        parameter = student.layout[name]
        is_idle = student.anatomy.layer_number(name) in idle and student.anatomy.is_in_decoder(name) == in_decoder
        adds = parameter.axes[0] == "hidden" and parameter.kind in ("matrix", "bias")
        state[name] = torch.zeros_like(tensor) if is_idle and adds else tensor
        if post_norm and parameter.kind == "norm":
            state[name] = torch.full_like(tensor, float(name.endswith("weight")))
    return student.with_state(state)


@few
@given(families, untied, seeds, st.booleans(), st.sets(st.integers(0, 2), min_size=1, max_size=3))
def test_layers_without_effect_leave_no_trace(
    make_exact: Make, pair_logits: Logits, sentences: list[str],
    family: str, untied: bool, seed: int, in_decoder: bool, idle: set[int],
) -> None:  # fmt: skip
    """Those of the encoder, or of the decoder; the first ones too, in which T5 keeps its relative positions."""
    depth = {"num_layers": 4, "num_decoder_layers": 4} if family in ("t5", "mt5") else {}
    depth = depth or {"encoder_layers": 4, "decoder_layers": 4}
    student = idle_layers(make_exact(family, **options_of(family, untied, seed=seed, **depth)), in_decoder, idle)
    if family == "marian" and 0 in idle:
        idle = idle - {0}  # Marian's embeddings are not normalised before the first layer: that one is never without
        if not idle:
            return
        student = idle_layers(make_exact(family, **options_of(family, untied, seed=seed, **depth)), in_decoder, idle)
    count = 4 - len(idle)
    smaller = pruned(student, Pruning(decoder_layers=count) if in_decoder else Pruning(layers=count), sentences)
    assert (smaller.shape.layers, smaller.shape.decoder_layers) == ((4, count) if in_decoder else (count, 4))
    assert_same(pair_logits(smaller, sentences, sentences), pair_logits(student, sentences, sentences))


def with_idle_units(student: Student, kept: list[int]) -> Student:
    """The student with all hidden units but the kept ones nought at every place.

    Under layer norms the kept ones come in pairs of opposite values, so that the mean is nought too.
    """
    paired = student.anatomy.model_type in ("bart", "marian")
    gone = torch.tensor([unit for unit in range(student.shape.hidden) if unit not in kept])
    first, second = torch.tensor(kept[0::2]), torch.tensor(kept[1::2])
    state = {}
    for name, tensor in student.state.items():
        parameter, tensor = student.layout[name], tensor.clone()
        is_norm = parameter.kind == "norm"
        gives = parameter.kind in ("table", "bias") and parameter.axes[-1] == "hidden"
        gives = gives or (parameter.kind == "matrix" and parameter.axes[0] == "hidden")
        axis = 0 if parameter.kind == "matrix" else len(parameter.axes) - 1
        if gives or (is_norm and name.endswith("bias")):
            tensor.index_fill_(axis, gone, 0.0)
            if paired:
                tensor.index_copy_(axis, second, -tensor.index_select(axis, first))
        elif is_norm and paired:
            tensor[second] = tensor[first]
        state[name] = tensor
    return student.with_state(state)


@few
@given(families, untied, seeds, st.booleans(), st.data())
def test_hidden_units_without_effect_leave_no_trace(
    make_exact: Make, pair_logits: Logits, sentences: list[str],
    family: str, untied: bool, seed: int, scaled: bool, data: st.DataObject,
) -> None:  # fmt: skip
    others: dict[str, Any] = {**SAME_HEADS, "scale_embedding": scaled}
    if family in ("t5", "mt5"):
        others = {"layer_norm_epsilon": 1e-16, "feed_forward_proj": "gated-gelu" if scaled else "relu"}
    student = make_exact(family, **options_of(family, untied, seed=seed, **others))
    size = data.draw(st.sampled_from([5, 8, 11] if family in ("t5", "mt5") else [4, 8]))
    kept = sorted(data.draw(st.permutations(range(12)))[:size])
    student = with_idle_units(student, kept)
    shape = student.shape
    if family in ("bart", "marian"):
        # Each half loses heads with its width: 4 wide in the encoder, 2 in the decoder.
        lost = {"heads": (12 - size) // 4, "decoder_heads": (12 - size) // 2, "cross_heads": (12 - size) // 2}
        gone: dict[tuple[str, int], list[int]] = {}
        for kind, count in lost.items():
            gone |= draw_gone(data, student, (kind,), count)
        student = silence(student, gone, {"heads": 4, "decoder_heads": 2, "cross_heads": 2})
    smaller = pruned(student, Pruning(hidden=size), sentences)
    assert smaller.shape.hidden == size
    assert (smaller.shape.head_width, smaller.shape.decoder_head_width) == (shape.head_width, shape.decoder_head_width)
    assert_same(pair_logits(smaller, sentences, sentences), pair_logits(student, sentences, sentences))


@few
@given(families, untied, seeds, st.lists(st.integers(0, 9), min_size=1, max_size=4), st.booleans())
def test_vocabulary_that_no_text_uses_leaves_no_trace(
    make_exact: Make, pair_logits: Logits, sentences: list[str],
    family: str, untied: bool, seed: int, domain: list[int], sentinels: bool,
) -> None:  # fmt: skip
    apart = {"share_encoder_decoder_embeddings": False} if family == "marian" and seed % 2 else {}
    student = make_exact(family, **options_of(family, untied, seed=seed, **apart))
    texts = [sentences[number] for number in domain]
    smaller = pruned(student, Pruning(vocabulary=0, sentinels=sentinels), texts)
    before, after = (each.tokenizer.get_vocab(with_added_tokens=True) for each in (student, smaller))
    assert len(after) == smaller.shape.vocabulary < student.shape.vocabulary
    assert ("<extra_id_0>" in after) == (sentinels and "<extra_id_0>" in before)
    rows = [before[token] for token in sorted(after, key=after.__getitem__)]
    for text in texts:
        assert smaller.tokenizer.encode(text).tokens == student.tokenizer.encode(text).tokens
    assert_same(pair_logits(smaller, texts, texts), pair_logits(student, texts, texts)[:, rows])


SIZES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "t5": ({}, {"heads": 2, "hidden": 7, "neurons": 6}),
    "mt5": ({"feed_forward_proj": "gated-gelu"}, {"heads": 1, "hidden": 11, "neurons": 3}),
    "bart": (SAME_HEADS, {"hidden": 8, "neurons": 6, "decoder_neurons": 3, "positions": 30}),
    "marian": ({**SAME_HEADS, "scale_embedding": True}, {"hidden": 4, "neurons": 6, "positions": 30}),
}


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("untied", [True, False])
def test_a_pruned_summariser_is_a_plain_checkpoint(
    family: str, untied: bool, make_summarizer: Make, pair_logits: Logits, model_logits: Logits,
    in_double: Callable[[Student], Student], sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(bart_layers, "EPS", 1e-5)
    options, sizes = SIZES[family]
    student = make_summarizer(family, **options_of(family, untied, **options))
    texts = [sentences[0], sentences[1][:30]]
    examples = make_summary_examples(student, sentences, sentences)
    smaller = prune(student, Pruning(layers=2, decoder_layers=1, vocabulary=0, **sizes), examples, texts)
    shape = smaller.shape
    assert (shape.layers, shape.decoder_layers, shape.hidden, shape.neurons) == (
        2, 1, sizes["hidden"], sizes["neurons"],
    )  # fmt: skip
    assert smaller.parameter_count() < student.parameter_count()
    smaller.save(tmp_path)
    model, found = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = pair_logits(in_double(smaller), texts, texts)
    torch.testing.assert_close(model_logits(model.eval(), smaller, texts, texts), expected, rtol=1e-5, atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == smaller.shape.vocabulary
    for text in texts:
        assert tokenizer(text)["input_ids"] == smaller.tokenizer.encode(text).ids
    again = read_student(tmp_path, "summarize")
    assert set(again.state) == set(smaller.state)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in smaller.state.items())
    assert (again.max_tokens, again.pad_id, again.eos_ids, again.generation) == (
        smaller.max_tokens, smaller.pad_id, smaller.eos_ids, smaller.generation,
    )  # fmt: skip
    model.generate(tokenizer(texts[0], return_tensors="pt")["input_ids"], max_length=12, num_beams=2)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_second_names_of_sizes_do_not_outlive_pruning(
    family: str, make_summarizer_checkpoint: Callable[..., Any], sentences: list[str], tmp_path: Path
) -> None:
    """Published BARTs have ``num_hidden_layers`` beside ``encoder_layers``, and transformers takes both."""
    options = {} if family in ("t5", "mt5") else SAME_HEADS
    folder, model = make_summarizer_checkpoint(family, **options)
    changed = Path(shutil.copytree(folder, tmp_path / "student"))
    config = json.loads((changed / "config.json").read_text())
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    (changed / "config.json").write_text(json.dumps(config | {name: getattr(model.config, name) for name in names}))
    student = read_student(changed, "summarize")
    sizes = Pruning(layers=1, heads=2, hidden=8 if options else 7)
    pruned(student, sizes, sentences).save(tmp_path / "pruned")
    transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "pruned")
    config["num_hidden_layers"] = config.pop(student.anatomy.config_fields["layers"])
    (changed / "config.json").write_text(json.dumps(config))
    assert read_student(changed, "summarize").shape.layers == 3


def test_special_tokens_are_renumbered(make_summarizer: Make, sentences: list[str]) -> None:
    for family in ENCODER_DECODERS:
        student = make_summarizer(family)
        smaller = pruned(student, Pruning(vocabulary=0), sentences[:1])
        for settings_now in (smaller.config, smaller.generation):
            for field, token in (("pad_token_id", "<pad>"), ("eos_token_id", "</s>")):
                assert settings_now[field] == smaller.tokenizer.token_to_id(token)
            start = smaller.tokenizer.id_to_token(settings_now["decoder_start_token_id"])
            assert start == ("</s>" if family == "bart" else "<pad>")
        if family == "bart":
            assert smaller.generation["forced_bos_token_id"] == smaller.tokenizer.token_to_id("<s>")


def test_most_of_an_mt5_is_its_vocabulary(make_summarizer_checkpoint: Callable[..., Any], sentences: list[str]) -> None:
    """With mT5-small's proportions, an eighth in each direction, trimming takes away three quarters of the weights."""
    folder, _ = make_summarizer_checkpoint("mt5")
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, sentinels, rows = description["model"]["vocab"], description["added_tokens"][-5:], 250_112 // 8
    assert [each["id"] for each in sentinels] == list(range(len(vocabulary), len(vocabulary) + 5))
    vocabulary += [[f"▁{number:x}ɸ", -20.0] for number in range(rows - len(vocabulary) - 5)]
    for number, each in enumerate(sentinels):
        each["id"] = len(vocabulary) + number
    tokenizer = Tokenizer.from_str(json.dumps(description))
    sizes = {"d_model": 64, "d_kv": 8, "d_ff": 128, "num_heads": 6, "num_layers": 8, "num_decoder_layers": 8}
    folder, _ = make_summarizer_checkpoint(
        "mt5", tokenizer=tokenizer, untied=True, feed_forward_proj="gated-gelu", vocab_size=rows, **sizes
    )
    student = read_student(folder, "summarize")
    smaller = pruned(student, Pruning(vocabulary=0), sentences)
    assert smaller.parameter_count() < 0.25 * student.parameter_count()
    for text in sentences:
        assert smaller.tokenizer.encode(text).tokens == student.tokenizer.encode(text).tokens


def test_a_half_that_matters_less_is_told_apart(make_exact: Make, sentences: list[str]) -> None:
    """Scores of the halves are their own: silencing a decoder's neurons leaves the encoder's scores above nought."""
    student = silence(make_exact("bart"), {("decoder_neurons", 0): [2], ("neurons", 1): [4]}, {})
    examples = make_summary_examples(student, sentences, sentences)
    scores = measure_importance(student, examples)
    assert [int((each == 0).sum()) for each in scores.units["decoder_neurons"]] == [1, 0]
    assert [int((each == 0).sum()) for each in scores.units["neurons"]] == [0, 1, 0]
    assert scores.units["decoder_neurons"][0][2] == 0
    assert scores.units["neurons"][1][4] == 0
    assert (len(scores.layers), len(scores.decoder_layers)) == (3, 2)
    assert {kind: len(each) for kind, each in scores.units.items()} == {
        "heads": 3, "neurons": 3, "decoder_heads": 2, "cross_heads": 2, "decoder_neurons": 2,
    }  # fmt: skip


def test_scores_from_any_batches(
    make_summarizer: Make, pair_feeds: Callable[..., Any], sentences: list[str]
) -> None:
    student = make_summarizer("t5")
    feeds = pair_feeds(student, sentences[:4], sentences[4:8])
    unknown = torch.full_like(feeds["input_ids"], -100)
    heard: list[float] = []
    scores = score_units(student, [(feeds, unknown), (feeds, feeds["input_ids"])], 2, heard.append)
    assert heard == [0.5, 1.0]
    assert all((each > 0).all() for kind in scores.units.values() for each in kind)


@pytest.mark.parametrize(
    ("family", "pruning", "words"),
    [
        ("t5", Pruning(decoder_neurons=3), "give neurons alone"),
        ("t5", Pruning(decoder_layers=3), "give 1 to 2"),
        ("t5", Pruning(heads=4), "4 heads; this student has 3"),
        ("bart", Pruning(hidden=8), "6 wide"),
        ("bart", Pruning(heads=2, hidden=4), "hidden = heads x head width"),
        ("marian", Pruning(decoder_neurons=8), "give 1 to 7"),
    ],
)
def test_sizes_that_cannot_be(
    family: str, pruning: Pruning, words: str, make_summarizer: Make, sentences: list[str]
) -> None:
    with pytest.raises(RecipeError, match=words):
        pruned(make_summarizer(family), pruning, sentences)


def test_a_decoder_is_asked_of_an_encoder(make_student: Make) -> None:
    with pytest.raises(RecipeError, match="no encoder-decoder"):
        prune(make_student("bert"), Pruning(decoder_layers=1), [], [])


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_shorter_inputs(
    family: str, make_summarizer: Make, pair_logits: Logits, sentences: list[str], tmp_path: Path
) -> None:
    student = make_summarizer(family)
    shorter = prune_positions(student, 41)
    assert shorter.max_tokens == 41
    long = [" ".join(sentences)]
    assert measure_importance(shorter, make_summary_examples(shorter, long, long)).hidden.isfinite().all()
    texts = sentences[:2], sentences[2:4]
    torch.testing.assert_close(pair_logits(shorter, *texts), pair_logits(student, *texts), rtol=0, atol=0)
    shorter.save(tmp_path)
    assert read_student(tmp_path, "summarize").max_tokens == 41
    if family in ("bart", "marian"):
        assert shorter.config["max_position_embeddings"] == 41


def test_the_command(
    make_summarizer_checkpoint: Callable[..., Any], sentences: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """``edgescribe prune`` of a T5 whose ``tokenizer_config.json`` lists its sentinels, as published ones do."""
    folder, _ = make_summarizer_checkpoint("t5")
    student = Path(shutil.copytree(folder, tmp_path / "student"))
    config = json.loads((student / "tokenizer_config.json").read_text())
    listed = {"additional_special_tokens": [f"<extra_id_{number}>" for number in range(5)], "extra_ids": 5}
    (student / "tokenizer_config.json").write_text(json.dumps({**config, **listed}))
    rows = [{"text": text, "summary": text[:20]} for text in sentences[:6]]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for number, more in enumerate(([], ["--drop-sentinels"])):
        out = tmp_path / f"pruned-{number}"
        sizes = ["--layers=2", "--decoder-layers=1", "--heads=2", "--hidden=9", "--vocabulary=0", *more]
        assert run(["prune", str(student), "--task=summarize", f"--train={data}", f"--out={out}", *sizes]) == 0
        assert re.search(r"decoder_layers\s+2\s+1", capsys.readouterr().out)
        smaller, tokenizer = read_student(out, "summarize"), transformers.AutoTokenizer.from_pretrained(out)
        assert len(tokenizer) == smaller.shape.vocabulary
        assert (tokenizer.convert_tokens_to_ids("<extra_id_0>") == tokenizer.unk_token_id) == bool(more)
    asked = ["prune", str(student), "--task=summarize", f"--train={data}", "--out=x"]
    assert run(asked) == 2
    assert "--decoder-layers" in capsys.readouterr().err
    assert run([*asked, "--recipe=x", "--drop-sentinels"]) == 2
    assert "--recipe and --drop-sentinels exclude" in capsys.readouterr().err
