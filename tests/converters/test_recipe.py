"""The ladder, and recipes of one's own from TOML."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgescribe.converters.anatomy import ENCODERS
from edgescribe.converters.prune import Pruning
from edgescribe.converters.recipe import FLOAT, LADDER, NAMED, ROUND_ONLY, Recipe, Shares, read_recipe, recipe_from
from edgescribe.errors import RecipeError

Student = Any


@pytest.fixture(scope="module")
def student(make_student: Callable[..., Student]) -> Student:
    return make_student(
        "bert",
        num_hidden_layers=12,
        hidden_size=24,
        num_attention_heads=12,
        intermediate_size=256,
        max_position_embeddings=512,
    )


def test_the_ladder_takes_more_at_every_step(student: Student) -> None:
    names = [recipe.name for recipe in LADDER]
    assert names == ["gentle", "light", "medium", "strong", "harsh"]
    sizes = [recipe.pruning_of(student) for recipe in LADDER]
    assert [each.layers or 12 for each in sizes] == [12, 12, 9, 6, 6]
    assert [each.neurons or 256 for each in sizes] == [256, 128, 128, 128, 96]
    assert [each.heads or 12 for each in sizes] == [12, 12, 12, 12, 8]
    assert sizes[-1].hidden == 16
    assert all(each.vocabulary == 0 for each in sizes)
    assert [recipe.relu for recipe in LADDER] == [False, True, True, True, True]
    assert [recipe.changes(student) for recipe in LADDER] == [False, True, True, True, True]
    assert {recipe.precision for recipe in LADDER} == {"w8a8-static"}


def test_long_inputs_are_cut_but_by_recipes_that_leave_all(student: Student) -> None:
    long = replace(student, max_tokens=512)
    assert LADDER[0].pruning_of(long).positions == 256
    assert LADDER[0].pruning_of(replace(student, max_tokens=128)).positions is None
    assert Recipe("own", prune=Pruning(positions=300)).pruning_of(long).positions == 300
    for recipe in (ROUND_ONLY, FLOAT):
        assert recipe.pruning_of(long).is_empty
        assert not recipe.changes(long)


@pytest.mark.parametrize("family", ENCODERS)
def test_every_recipe_has_sizes_that_every_family_can_have(family: str, make_student: Callable[..., Student]) -> None:
    student = make_student(family)
    for recipe in NAMED.values():
        pruning = recipe.pruning_of(student)
        shape = student.shape
        assert (pruning.layers or 1) < max(2, shape.layers)
        assert pruning.heads is None or pruning.hidden == pruning.heads * shape.head_width


def test_a_share_that_takes_nothing_is_no_change(make_student: Callable[..., Student]) -> None:
    student = make_student("bert")  # 2 layers: three quarters of them are 2
    recipe = Recipe("r", keep=Shares(layers=0.75, vocabulary=False), max_tokens=0)
    assert recipe.pruning_of(student).is_empty
    assert not recipe.changes(student)
    assert Recipe("r", prune=Pruning(hidden=8)).changes(student)


def test_a_recipe_survives_json(tmp_path: Path) -> None:
    for recipe in NAMED.values():
        assert recipe_from(json.loads(json.dumps(recipe.as_dict())), "here") == recipe


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'precision = "w8a8-dynamic"\nrelu = true\n[keep]\nlayers = 0.5\n[prune]\nneurons = 64\n'
        "[training]\nepochs = 7\nlearning_rate = 1e-4\n[training.losses]\nsoft = 2\n"
    )
    recipe = read_recipe(path)
    assert (recipe.name, recipe.precision, recipe.relu) == ("mine", "w8a8-dynamic", True)
    assert recipe.keep == Shares(layers=0.5)
    assert recipe.prune == Pruning(neurons=64)
    assert (recipe.training.epochs, recipe.training.losses.soft, recipe.training.losses.hidden) == (7, 2.0, 1.0)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("precison = 'fp32'", "'precison'"),
        ("[keep]\nlayer = 0.5", "'keep.layer'; did you mean keep.layers?"),
        ("[prune]\nnurons = 5", "'prune.nurons'"),
        ("[training]\nepoch = 5", "'training.epoch'"),
        ("[training.losses]\nhard = 1.0", "'training.losses.hard'"),
        ("[training]\nepochs = 'many'", "training.epochs"),
        ("precision = 'int8'", "precision"),
        ("[keep]\nlayers = 0.0", "keep.layers is 0.0"),
        ("[keep]\nwidth = 1.5", "keep.width is 1.5"),
        ("[prune]\nlayers = 0", "prune.layers is 0"),
        ("[prune]\nvocabulary = -1", "prune.vocabulary is -1"),
        ("[training]\nbatch_size = 0", "training.batch_size is 0"),
        ("[training]\nlearning_rate = nan", "training.learning_rate is nan"),
        ("[training]\nwarmup = 1.0", "training.warmup"),
        ("[training]\ndropout = -0.1", "training.dropout"),
        ("[training.losses]\nsoft = -1", "training.losses.soft"),
        ("[training.losses]\ntemperature = 0", "training.losses.temperature"),
        ("[training.losses]\nsoft=0\nhidden=0\nattention=0\nlabels=0", "nothing to learn from"),
        ("train_tokens = 4", "train_tokens is 4"),
        ("float_epochs = -1", "float_epochs is -1"),
        ("keep = 3", "keep"),
        ("= 3", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, names: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as raised:
        read_recipe(path)
    assert names in str(raised.value)
    assert "bad.toml" in str(raised.value)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(RecipeError, match="did you mean medium"):
        read_recipe("mediun")


def test_a_writers_heads_go_in_groups_and_divide_its_width(make_writer: Any) -> None:
    student = make_writer("llama", hidden_size=72, num_attention_heads=6, num_key_value_heads=3, head_dim=12)
    pruning = Recipe("narrow", "w4a8-dynamic", Shares(width=0.67)).pruning_of(student)
    assert pruning.heads == 4
    assert pruning.hidden is not None
    assert pruning.hidden % pruning.heads == 0
    assert pruning.positions is None
    assert Recipe("whole", "w4a8-dynamic", Shares(vocabulary=False)).pruning_of(student).is_empty
