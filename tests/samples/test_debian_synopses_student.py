"""The summarising student that ships: what its card says of it, and that plain transformers writes with it."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, T5ForConditionalGeneration

FOLDER = Path(__file__).parents[2] / "samples/debian_synopses"
STUDENT = FOLDER / "student"


@pytest.fixture(scope="module")
def make() -> Any:
    """The script; by its path, for another sample has one of that name."""
    spec = importlib.util.spec_from_file_location("make_synopses_student", FOLDER / "make_student.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.decompress((FOLDER / "test.jsonl.gz").read_bytes()).splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(STUDENT)


@pytest.fixture(scope="module")
def model() -> Any:
    return T5ForConditionalGeneration.from_pretrained(STUDENT).eval()


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in STUDENT.iterdir()) <= 10_000_000
    assert (STUDENT / "model.safetensors").stat().st_size <= 8_200_000
    card = (STUDENT / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "make_student.py" in card
    assert "PROVENANCE.md" in card


def test_plain_transformers_loads_it_in_float32(model: Any) -> None:
    weights = sum(weight.numel() for weight in model.parameters())
    assert weights == 4_046_208
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert model.config.model_type == "t5"
    assert model.lm_head.weight is model.shared.weight
    widths = (model.config.d_model, model.config.d_ff, model.config.num_heads * model.config.d_kv)
    assert not any(width % 32 for width in widths)


def test_its_tokens_follow_the_conventions_of_t5(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> None:
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]
    assert model.config.decoder_start_token_id == 0
    assert len(tokenizer) == model.config.vocab_size == 8000
    alone = Tokenizer.from_file(str(STUDENT / "tokenizer.json"))
    for row in rows[:50]:
        for text in (row["text"], row["summary"]):
            ids = tokenizer(text)["input_ids"]
            assert ids[-1] == 1
            assert alone.encode(text).ids == ids
            assert 2 in ids or tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.slow
def test_it_summarises_better_than_the_lead_sentence(
    make: Any, model: Any, tokenizer: Any, rows: list[dict[str, str]]
) -> None:
    some = rows[:400]
    written = make.write_summaries(model, tokenizer, [row["text"] for row in some], beams=4)
    student = make.rouge(written, some)["rougeL"]
    lead = make.rouge([make.lead_sentence(row["text"]) for row in some], some)["rougeL"]
    assert student.mean() > lead.mean() + 4
    assert sum(len(text.split()) for text in written) < sum(len(row["text"].split()) for row in some) / 4


def test_figures_are_of_the_whole_test_split_and_stand_in_the_card(model: Any, rows: list[dict[str, str]]) -> None:
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    assert figures["rows"] == len(rows)
    assert figures["weights"] == sum(weight.numel() for weight in model.parameters())
    card = (STUDENT / "README.md").read_text(encoding="utf-8")
    rouge = figures["rouge"]
    for plain in ("lead sentence", "first 8 words"):
        for student in ("student, 4 beams", "student, greedy"):
            assert rouge[student]["rougeL"]["low"] > rouge[plain]["rougeL"]["high"] + 2
    for name, scores in rouge.items():
        line = re.search(rf"^\| (?:\*\*)?{re.escape(name)}(?:\*\*)? \|.*$", card, re.MULTILINE)
        assert line, f"the card has no line of {name}"
        for measure in ("rouge1", "rouge2", "rougeL"):
            assert f"{scores[measure]['mean']:.1f}" in line[0]


def test_lead_sentence(make: Any) -> None:
    assert make.lead_sentence("It reads e.g. mail. Then it stops.") == "It reads e.g. mail."
    assert make.lead_sentence("no end") == "no end"


def test_a_wired_model_copies_before_any_training(make: Any) -> None:
    torch.manual_seed(1)
    ids = torch.stack([torch.randperm(make.PIECES - 3)[:20] + 3 for _ in range(16)])

    def copied(model: Any) -> float:
        with torch.inference_mode():
            found = model(input_ids=ids, labels=ids).logits.argmax(-1)
        return float((found == ids)[:, 1:].float().mean())  # the first token follows none

    fresh = T5ForConditionalGeneration(make.T5Config(**make.SHAPE, decoder_start_token_id=0)).eval()
    assert copied(fresh) < 0.1
    make.wire(fresh)
    assert copied(fresh) > 0.4


def test_wiring_needs_heads_as_wide_as_the_model(make: Any) -> None:
    narrow = make.T5Config(**make.SHAPE | {"d_kv": 16, "vocab_size": 32}, decoder_start_token_id=0)
    with pytest.raises(ValueError, match="6 heads of 16"):
        make.wire(T5ForConditionalGeneration(narrow))
