"""Tokens, padding, truncation and words."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from edgescribe import BundleError, InputError
from edgescribe.sdk.tokenizer import Tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers


def make(tokenizer_json: bytes, **changes: Any) -> Tokenizer:
    return Tokenizer(tokenizer_json, **{"max_tokens": 16, "pad_id": 0, **changes})


def test_right_padding(tokenizer_json: bytes) -> None:
    batch = make(tokenizer_json, pad_id=12, pad_type_id=3).encode(["Kernel driver", "chess"], offsets=True)
    assert batch.input_ids.tolist() == [[2, 4, 5, 3], [2, 7, 3, 12]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0], [0, 0, 0, 3]]
    assert batch.offsets.tolist() == [[[0, 0], [0, 6], [7, 13], [0, 0]], [[0, 0], [0, 5], [0, 0], [0, 0]]]
    assert batch.truncated == (False, False)
    assert {array.dtype for array in batch.feeds(["input_ids", "attention_mask"]).values()} == {np.dtype(np.int32)}


def test_left_padding(tokenizer_json: bytes) -> None:
    batch = make(tokenizer_json, padding_side="left").encode(["Kernel driver", "chess"])
    assert batch.input_ids.tolist() == [[2, 4, 5, 3], [0, 2, 7, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert batch.offsets.shape == (2, 4, 0)

def test_no_truncation_where_it_is_turned_off(tokenizer_json: bytes) -> None:
    text = "kernel driver " * 500
    (found,) = make(tokenizer_json, max_tokens=4, truncates=False).tokenize([text])
    assert len(found.ids) == 1002
    assert not found.truncated


def test_truncation_keeps_special_tokens(tokenizer_json: bytes) -> None:
    batch = make(tokenizer_json, max_tokens=4).encode(["kernel driver", "kernel driver game"])
    assert batch.truncated == (False, True)
    assert batch.input_ids.tolist() == [[2, 4, 5, 3]] * 2


def test_settings_inside_the_file_are_not_used(tokenizer_json: bytes) -> None:
    library = Library.from_str(tokenizer_json.decode())
    library.enable_padding(length=12, pad_id=5)
    library.enable_truncation(3)
    assert make(library.to_str().encode()).encode(["kernel driver"]).input_ids.tolist() == [[2, 4, 5, 3]]


def test_empty_text(tokenizer_json: bytes) -> None:
    assert make(tokenizer_json).encode(["", "  \n"]).input_ids.tolist() == [[2, 3], [2, 3]]


def test_empty_text_where_there_are_no_special_tokens() -> None:
    library = Library(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    batch = make(library.to_str().encode(), pad_id=1).encode([""], offsets=True)
    assert batch.input_ids.tolist() == [[1]]
    assert batch.attention_mask.tolist() == [[1]]


def test_no_texts(tokenizer_json: bytes) -> None:
    assert make(tokenizer_json).encode([]).input_ids.shape == (0, 0)


@pytest.mark.parametrize("texts", [[b"x"], [None], ["a", 3], "text", 5, {"a": 1}, None])
def test_what_is_no_list_of_texts(tokenizer_json: bytes, texts: Any) -> None:
    with pytest.raises(InputError, match=r"not str|expected a list of texts"):
        make(tokenizer_json).encode(texts)


def test_no_room_for_a_token(tokenizer_json: bytes) -> None:
    with pytest.raises(BundleError, match="adds 2 special tokens, which leaves no room in max_tokens = 2"):
        make(tokenizer_json, max_tokens=2)


ODD = st.text(st.characters() | st.sampled_from("\0\ud800\udfff\ufffd \t\n\u200b\u0301😀kernel."), max_size=60)


@given(texts=st.lists(ODD, max_size=5))
def test_any_text_gives_ids_and_words_with_places(tokenizer_json: bytes, texts: list[str]) -> None:
    tokenizer = make(tokenizer_json)
    for text, tokens in zip(texts, tokenizer.tokenize(texts, offsets=True), strict=True):
        assert 2 <= len(tokens.ids) <= 16
        assert max(tokens.ids) < tokenizer.vocabulary_size
        end = 0
        for word in tokens.words:
            assert end <= word.start < word.end <= len(text)
            piece = text[word.start : word.end]
            assert piece == piece.strip()
            assert 0 < word.token < len(tokens.ids)
            end = word.end
    assert [list(tokens.ids) for tokens in tokenizer.tokenize(texts)] == [
        list(tokens.ids) for tokens in tokenizer.tokenize(texts, offsets=True)
    ]


@given(data=st.data())
def test_a_long_text_gives_what_the_library_gives_for_all_of_it(tokenizer_json: bytes, data: st.DataObject) -> None:
    """Only the head of a long text is looked at; that must not show."""
    piece = st.sampled_from(["kernel", " ", "\n", " " * 300, "x" * 300, ".", "game ", "\u00a0", "chess"])
    text = "".join(data.draw(st.lists(piece, min_size=1, max_size=60)))
    limit = data.draw(st.integers(3, 8))
    library = Library.from_str(tokenizer_json.decode())
    library.enable_truncation(limit)
    whole = library.encode(text)
    (tokens,) = make(tokenizer_json, max_tokens=limit).tokenize([text])
    assert list(tokens.ids) == whole.ids
    assert tokens.truncated == bool(whole.overflowing)


def test_words_of_a_tokenizer_that_keeps_blanks_in_its_tokens() -> None:
    library = Library(models.BPE({"Ġ": 0, "a": 1, "b": 2, "Ġa": 3, ".": 4}, [("Ġ", "a")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    (tokens,) = make(library.to_str().encode()).tokenize(["ab  a."], offsets=True)
    assert ["ab  a."[word.start : word.end] for word in tokens.words] == ["ab", "a", "."]


def test_words_of_a_tokenizer_that_does_not_split_words() -> None:
    library = Library(models.BPE({"a": 0, "b": 1, " ": 2, "ab": 3}, [("a", "b")]))
    (tokens,) = make(library.to_str().encode()).tokenize(["ab b ab"], offsets=True)
    assert [(word.token, word.start, word.end) for word in tokens.words] == [(0, 0, 2), (2, 3, 4), (4, 5, 7)]


def test_several_threads_at_once(tokenizer_json: bytes) -> None:
    tokenizer = make(tokenizer_json)
    texts = ["kernel " * count for count in range(40)]
    expected = [list(tokens.ids) for tokens in tokenizer.tokenize(texts)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: [list(tokens.ids) for tokens in tokenizer.tokenize(texts)], range(64)))
    assert all(result == expected for result in results)
