"""What writers read in the benchmark."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from edgescribe.errors import DataError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from writer_texts import conversations, prompt, read_texts, scored_tokens, tokens_of, windows

LONG = " ".join(f"word{number}" for number in range(80))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer(models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return found


def test_windows_hold_whole_texts_and_score_what_follows_the_lead(tokenizer: Tokenizer) -> None:
    (window,) = windows(tokenizer, ["too short", LONG, LONG], 10, 1000)
    assert window.lead + window.rest == LONG
    assert len(window.lead.split()) == 24
    assert window.ids == tokens_of(tokenizer, LONG)
    assert tokenizer.decode(window.ids[: window.lead_tokens]) == window.lead
    assert scored_tokens([window]) == len(window.rest)


def test_too_few_texts_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="--texts"):
        windows(tokenizer, [LONG], 10_000, 1000)
    with pytest.raises(DataError, match="0 tokens"):
        windows(tokenizer, [LONG], 10, 100)


def test_a_prompt_has_exactly_its_tokens(tokenizer: Tokenizer) -> None:
    text = prompt(tokenizer, [LONG, "more"], 128)
    assert len(tokens_of(tokenizer, text)) == 128
    assert LONG.startswith(text)
    with pytest.raises(DataError, match="prompt of 128"):
        prompt(tokenizer, ["few"], 128)


def test_conversations_ask_to_rewrite_and_to_summarise() -> None:
    first, second = conversations(["short", LONG, LONG, LONG], 2)
    assert first[0]["content"].startswith("Rewrite")
    assert second[0]["content"].startswith("Summarise")
    assert first[0]["role"] == "user"
    assert LONG in first[0]["content"]


def test_texts_come_from_rows_or_paragraphs(tmp_path: Path) -> None:
    rows = tmp_path / "texts.jsonl.gz"
    rows.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in ("a", "b")).encode()))
    assert read_texts(rows) == ["a", "b"]
    plain = tmp_path / "texts.txt"
    plain.write_text("One\nparagraph.\n\n\nAnother.\n", encoding="utf-8")
    assert read_texts(plain) == ["One paragraph.", "Another."]
    with pytest.raises(DataError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")
