"""Every family's program gives what transformers' model gives, for every task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgescribe.converters.anatomy import ENCODERS
from edgescribe.converters.families.mpnet import bucket_of
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.torch_graph import Recording, TorchGraph
from edgescribe.converters.training_data import collate, make_examples
from edgescribe.errors import StudentError

TASKS = ("classify", "tag", "embed")
Make = Callable[..., tuple[Path, Any]]
InDouble = Callable[[Student], Student]


def answers(model: Any, feeds: dict[str, torch.Tensor], task: str) -> torch.Tensor:
    """What transformers' model gives in float64; embeddings pooled as sentence-transformers pools them."""
    model = model.double()
    asked = {name: value for name, value in feeds.items() if name != "token_type_ids"}
    if model.config.model_type == "xlnet":
        asked["token_type_ids"] = feeds["token_type_ids"]
    with torch.no_grad():
        given = model(**asked)
    if task != "embed":
        return given.logits
    kept = feeds["attention_mask"][:, :, None]
    pooled = (given.last_hidden_state * kept).sum(1) / kept.sum(1)
    return torch.nn.functional.normalize(pooled, dim=-1)


def check_parity(folder: Path, model: Any, task: Any, texts: list[str], in_double: InDouble) -> None:
    student = in_double(read_student(folder, task))
    graph = TorchGraph(student).eval()
    feeds = collate(make_examples(student, texts, None), student, None).feeds
    expected = answers(model, feeds, task)
    with torch.no_grad():
        (given,) = graph.run(feeds).values()
        (whole,) = graph.run(feeds, Recording()).values()
    if task == "tag":
        kept = feeds["attention_mask"].bool()
        expected, given, whole = expected[kept], given[kept], whole[kept]
    assert expected.std() > 0.05
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ENCODERS)
def test_a_family_answers_as_transformers_does(
    family: str, task: str, make_checkpoint: Make, sentences: list[str], in_double: InDouble
) -> None:
    folder, model = make_checkpoint(family, task)
    check_parity(folder, model, task, sentences, in_double)


VARIANTS = [
    ("bert", {"num_hidden_layers": 1, "hidden_act": "relu", "type_vocab_size": 2}),
    ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "vocab_size": 203}),
    ("distilbert", {"n_layers": 1, "sinusoidal_pos_embds": True}),
    ("roberta", {"num_hidden_layers": 1, "type_vocab_size": 2, "hidden_act": "silu"}),
    ("albert", {"num_hidden_layers": 1, "embedding_size": 12}),
    ("albert", {"num_hidden_layers": 5, "hidden_act": "gelu"}),
    ("electra", {"num_hidden_layers": 1, "embedding_size": 12}),
    ("electra", {"embedding_size": 21, "hidden_act": "gelu_new"}),
    ("mpnet", {"num_hidden_layers": 1, "relative_attention_num_buckets": 37}),
    ("xlnet", {"n_layer": 1, "ff_activation": "relu"}),
    ("xlnet", {"summary_use_proj": False}),
    ("xlnet", {"summary_use_proj": False, "summary_activation": ""}),
    ("xlnet", {"summary_activation": "gelu", "summary_type": "cls_index"}),
    ("xlnet", {"summary_activation": "", "d_model": 6, "d_head": 2}),
]


@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_variants_of_configurations(
    family: str, options: dict[str, Any], make_checkpoint: Make, sentences: list[str], in_double: InDouble
) -> None:
    for task in ("classify", "embed"):
        folder, model = make_checkpoint(family, task, **options)
        check_parity(folder, model, task, sentences, in_double)


def test_xlnet_that_reads_the_mean_of_its_tokens(make_checkpoint: Make, in_double: InDouble) -> None:
    """transformers' mean counts padding, so that only a text without any tells."""
    folder, model = make_checkpoint("xlnet", "classify", summary_type="mean")
    student = in_double(read_student(folder, "classify"))
    ids = torch.randint(7, 100, (3, 11), generator=torch.Generator().manual_seed(1))
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    expected = answers(model, feeds, "classify")
    with torch.no_grad():
        torch.testing.assert_close(TorchGraph(student).run(feeds)["logits"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options", "word"),
    [
        ("xlnet", {"summary_type": "first"}, "summary_type"),
        ("xlnet", {"attn_type": "uni"}, "attn_type"),
        ("xlnet", {"clamp_len": 8}, "clamp_len"),
        ("xlnet", {"bi_data": True}, "bi_data"),
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups"),
        ("albert", {"inner_group_num": 2}, "inner_group_num"),
        ("bert", {"hidden_act": "mish"}, "mish"),
    ],
)
def test_what_a_family_does_not_serve_is_refused(
    family: str, options: dict[str, Any], word: str, make_checkpoint: Make
) -> None:
    folder, _ = make_checkpoint(family, "classify", **options)
    with pytest.raises(StudentError, match=word):
        read_student(folder, "classify")


def test_mpnet_buckets_are_those_of_transformers() -> None:
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    offsets = torch.arange(-1100, 1101)
    expected = MPNetEncoder.relative_position_bucket(offsets)
    np.testing.assert_array_equal(bucket_of(offsets.numpy()), expected.numpy())
