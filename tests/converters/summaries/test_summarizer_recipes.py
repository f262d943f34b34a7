"""Recipes of summarisers and what is predicted for them: the ladder, sizes of both halves, budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from edgescribe.converters.plan import make_plan
from edgescribe.converters.prune import Pruning
from edgescribe.converters.recipe import (
    NAMED,
    ROUND_SUMMARIZER,
    SUMMARIZER_LADDER,
    Recipe,
    Shares,
    ladder_of,
    read_recipe,
    recipe_from,
)
from edgescribe.converters.workload import BYTES, pruned_shape, read_workload, summarize_workload
from edgescribe.device_profiles.profiles import load_profile
from edgescribe.errors import RecipeError


@pytest.fixture(scope="module")
def flan() -> Any:
    """A student of FLAN-T5-small's sizes, without its weights: 8 + 8 layers x 512, gated, with a head of its own."""
    from edgescribe.converters.student import Student

    config = {
        "model_type": "t5", "num_layers": 8, "num_decoder_layers": 8, "d_model": 512, "d_kv": 64, "num_heads": 6,
        "d_ff": 1024, "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        "decoder_start_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip

    class Words:
        def to_str(self) -> str:
            return "x" * 2_400_000

    return Student(
        config=config, state={}, tokenizer=Words(), tokenizer_config={}, task="summarize", labels=(), max_tokens=512,
        pad_id=0, source="flan", sha256="0" * 64,
    )  # fmt: skip


def test_the_ladder_takes_the_decoder_first(flan: Any) -> None:
    assert ladder_of("summarize") is SUMMARIZER_LADDER
    sizes = [recipe.pruning_of(flan) for recipe in SUMMARIZER_LADDER]
    assert [each.decoder_layers or 8 for each in sizes] == [8, 8, 4, 4, 4, 3]
    assert [each.layers or 8 for each in sizes] == [8, 8, 8, 8, 6, 4]
    assert [each.neurons or 1024 for each in sizes] == [1024, 1024, 1024, 1024, 672, 512]
    assert [each.vocabulary for each in sizes] == [None, None, None, 0, 0, 0]
    assert [recipe.changes(flan) for recipe in SUMMARIZER_LADDER] == [False, False, True, True, True, True]
    assert [recipe.precision for recipe in SUMMARIZER_LADDER] == ["w8a8-dynamic"] + 5 * ["w4a8-dynamic"]
    assert all(each.positions is None for each in sizes)
    assert ROUND_SUMMARIZER.pruning_of(flan).is_empty
    assert NAMED["summarizer-npu"].precision == NAMED["summarizer-npu-round"].precision == "w8a8-static"
    assert NAMED["summarizer-npu-round"].training.epochs == 0


def test_width_is_taken_as_the_family_has_it(flan: Any, make_seq2seq: Any) -> None:
    narrow = Recipe("narrow", keep=Shares(width=0.5, vocabulary=False)).pruning_of(flan)
    assert (narrow.heads, narrow.hidden) == (3, 256)
    student, _ = make_seq2seq
    pruning = Recipe("narrow", keep=Shares(width=0.5, neurons=0.5, vocabulary=False)).pruning_of(student)
    shape = pruned_shape(student.shape, pruning)
    if student.anatomy.own_head_width:
        assert (shape.hidden, shape.heads) == (32, 2)
    else:
        assert (shape.hidden, shape.heads, shape.decoder_heads) == (16, 2, 2)
    assert shape.head_width == student.shape.head_width
    assert shape.neurons == shape.decoder_neurons < student.shape.neurons


def test_a_recipe_of_ones_own() -> None:
    given = {
        "name": "own", "precision": "w4a8-dynamic", "prefix": "in short: ", "summary_tokens": 48,
        "teacher_summaries": 1, "teacher_beams": 4, "prune": {"decoder_layers": 1, "sentinels": False},
        "keep": {"decoder_layers": 0.5},
    }  # fmt: skip
    recipe = recipe_from(given, "own.toml")
    assert (recipe.prefix, recipe.summary_tokens, recipe.teacher_summaries) == ("in short: ", 48, 1.0)
    assert recipe.prune == Pruning(decoder_layers=1, sentinels=False)
    assert recipe_from(recipe.as_dict(), "taken up") == recipe
    for key, value, said in (
        ("teacher_summaries", 1.5, "0 to 1"), ("teacher_beams", 0, "1 to 64"), ("summary_tokens", 2, "4 or more"),
        ("keep", {"decoder_layers": 0}, "keep.decoder_layers is 0"), ("teacher_sumaries", 1, "did you mean"),
        ("prune", {"decoder_layers": 0}, "prune.decoder_layers is 0"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=said.replace(".", r"\.")):
            recipe_from({**given, key: value}, "own.toml")


def test_weights_are_counted_once_each(flan: Any) -> None:
    shape = flan.shape
    inner, blocks = 6 * 64, 3 * 1024
    layers = 8 * 512 * (4 * inner + blocks) + 8 * 512 * (8 * inner + blocks)
    whole = read_workload(shape, "w8a8-dynamic", 512)
    assert whole.weight_bytes == layers + 2 * 512 * 32128
    assert read_workload(replace(shape, tied=True), "fp32", 512).weight_bytes == 4 * (layers + 512 * 32128)
    step = summarize_workload(shape, "w4a8-dynamic", 512, 64)
    assert step.weight_bytes == int((8 * 512 * (6 * inner + blocks) + 512 * 32128) * BYTES["w4a8-dynamic"])
    assert step.macs < whole.macs
    longer = summarize_workload(shape, "w4a8-dynamic", 1024, 64)
    assert step.macs < longer.macs < 1.5 * step.macs


def test_a_shallow_decoder_is_predicted_to_write_faster(flan: Any) -> None:
    plan = make_plan(flan, [load_profile("raspberry-pi-5")])
    figures = [{finding.key: finding.value for finding in step.findings} for step in plan.steps]
    names = [step.recipe for step in plan.steps]
    assert names == [recipe.name for recipe in SUMMARIZER_LADDER]
    assert {"ttft_ms", "tokens_per_s", "peak_rss_mib", "disk_mib"} <= set(figures[0])
    by_name = dict(zip(names, figures, strict=True))
    assert by_name["summarizer-shallow"]["tokens_per_s"] > 1.1 * by_name["summarizer-int4"]["tokens_per_s"]
    assert by_name["summarizer-harsh"]["ttft_ms"] < by_name["summarizer-int8"]["ttft_ms"]
    assert by_name["summarizer-int4"]["disk_mib"] < 0.7 * by_name["summarizer-int8"]["disk_mib"]
    for step in plan.steps:
        assert step.tokens == 512
        assert 0 < step.error_fraction <= 1


@pytest.mark.parametrize("place", range(len(SUMMARIZER_LADDER)))
def test_the_gentlest_that_fits_is_chosen(flan: Any, place: int) -> None:
    profile = load_profile("raspberry-pi-5")
    reached = [
        {finding.key: finding.value for finding in step.findings}["tokens_per_s"]
        for step in make_plan(flan, [profile]).steps
    ]
    budget = msgspec.structs.replace(profile.budgets["summarize"], tokens_per_s=0.999 * max(reached[: place + 1]))
    plan = make_plan(flan, [msgspec.structs.replace(profile, budgets={"summarize": budget})])
    assert plan.fits
    assert plan.recipe.name == SUMMARIZER_LADDER[reached.index(max(reached[: place + 1]))].name


def test_relu_keeps_a_gated_block_gated(flan: Any, make_student: Callable[..., Any]) -> None:
    from edgescribe.converters.recover import with_relu

    changed = with_relu(flan)
    assert changed.config["feed_forward_proj"] == "gated-relu"
    assert changed.shape.activation == "relu"
    assert changed.shape.variant == flan.shape.variant
    assert read_recipe("light").changes(make_student("bert"))
