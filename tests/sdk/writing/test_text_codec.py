"""Tokens to text as they come: whole characters only, and together what the tokenizers library gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from edgescribe.errors import BundleError, InputError
from edgescribe.sdk.text_codec import TextCodec, TextStream, token_bytes_of
from edgescribe.sdk.tokenizer import Tokenizer as StudentTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

WILD = st.text() | st.text(alphabet="aé中😀👩‍👧 \n\t▁Ġ", max_size=30)
FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)


def streamed(codec: TextCodec, tokens: list[int], **options: Any) -> list[str]:
    stream = TextStream(codec, **options)
    return [stream.feed(token) for token in tokens]


@pytest.fixture(scope="module")
def llama_like() -> tuple[Tokenizer, TextCodec]:
    """SentencePiece's vocabulary with byte fallback, as Llama 2's ``tokenizer.json`` has it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "é", "▁a", "▁b", "ab", "▁ab", "▁▁", "é▁", "a▁b"]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer, TextCodec(tokenizer.to_str().encode())


@FIXTURES
@given(text=WILD)
def test_every_text_comes_back_in_whole_characters(codec: TextCodec, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    pieces = streamed(codec, codec.encode(text))
    assert "".join(pieces) == codec.decode(codec.encode(text))
    if not any(special in text for special in codec.specials.values()):
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


@FIXTURES
@given(tokens=st.lists(st.integers(0, 399), max_size=40))
def test_any_tokens_give_what_the_library_gives(codec: TextCodec, byte_level_json: bytes, tokens: list[int]) -> None:
    known = Tokenizer.from_buffer(byte_level_json)
    tokens = [token % codec.vocabulary_size for token in tokens]
    # an "a" at the end shows what bytes of a character begun before it become
    tokens.append(codec.encode("a")[0])
    assert "".join(streamed(codec, tokens)) == known.decode(tokens)


@FIXTURES
@given(numbers=st.lists(st.integers(259, 269) | st.sampled_from([0, 1, 2]), max_size=12))
def test_sentence_pieces_give_what_the_library_gives(
    llama_like: tuple[Tokenizer, TextCodec], numbers: list[int]
) -> None:
    known, codec = llama_like
    assert "".join(streamed(codec, numbers)) == known.decode(numbers)


@FIXTURES
@given(text=st.text(alphabet="ab é中😀", max_size=12))
def test_byte_fallback_gives_whole_characters(llama_like: tuple[Tokenizer, TextCodec], text: str) -> None:
    known, codec = llama_like
    tokens = [3 + byte for byte in text.encode()]
    pieces = streamed(codec, tokens, continues=True)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(streamed(codec, [*tokens, 260])) == known.decode([*tokens, 260])


def test_first_blank_is_kept_when_the_text_goes_on(llama_like: tuple[Tokenizer, TextCodec]) -> None:
    _, codec = llama_like
    tokens = [codec.token("▁a"), codec.token("▁b")]
    assert codec.decode(tokens) == "a b"
    assert "".join(streamed(codec, tokens, continues=True)) == " a b"
    # special tokens in front change nothing
    assert "".join(streamed(codec, [1, *tokens])) == "a b"


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace(scheme: str) -> None:
    vocabulary = {piece: i for i, piece in enumerate(["▁a", "b", "▁", "▁▁c", "d▁"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="b"))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    codec = TextCodec(tokenizer.to_str().encode())
    for tokens in ([0, 1, 0], [3, 4, 1], [4, 3], [2, 2, 1]):
        assert codec.decode(tokens) == tokenizer.decode(tokens)


def test_characters_that_are_cut_off_are_left_out(codec: TextCodec) -> None:
    tokens = codec.encode("x😀")
    assert codec.decode(tokens[:-1]) == "x"
    assert codec.decode([*tokens[:-1], codec.encode("y")[0]]) == "x\ufffdy"


def test_special_tokens_are_no_text(codec: TextCodec) -> None:
    tokens = codec.encode("<|im_start|>hello<|im_end|>")
    assert tokens[0] == codec.token("<|im_start|>")
    assert codec.decode(tokens) == "hello"
    assert codec.decode([10**6]) == ""


def test_lone_surrogates_and_other_types(codec: TextCodec) -> None:
    assert codec.decode(codec.encode("a\ud800b")) == "a\ufffdb"
    with pytest.raises(InputError, match="list"):
        codec.encode(["a"])  # type: ignore[arg-type]


def test_unknown_decoders_and_damaged_files_are_refused(byte_level_json: bytes) -> None:
    with pytest.raises(BundleError, match="WordPiece"):
        token_bytes_of({"type": "WordPiece", "prefix": "##"})
    with pytest.raises(BundleError, match="Strip"):
        token_bytes_of({"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1}]})
    for damaged in (b"", b"{}", b"[1]", byte_level_json[:500]):
        with pytest.raises(BundleError):
            TextCodec(damaged)
    wrong = json.loads(byte_level_json)
    wrong["decoder"] = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    with pytest.raises(BundleError, match="CTC"):
        TextCodec(json.dumps(wrong).encode())


def test_a_tokenizer_that_was_read_already_is_shared(byte_level_json: bytes, codec: TextCodec) -> None:
    text = "a text far longer than a few tokens, é中😀 and all"
    whole = StudentTokenizer(byte_level_json, max_tokens=4, pad_id=0, truncates=False)
    shared = TextCodec(byte_level_json, whole)
    assert shared._tokenizer is whole.library
    assert shared.encode(text) == codec.encode(text)
    assert shared.decode(shared.encode(text)) == text
    assert shared.specials == codec.specials


def test_a_tokenizer_that_cuts_texts_is_not_shared(byte_level_json: bytes, codec: TextCodec) -> None:
    cutting = StudentTokenizer(byte_level_json, max_tokens=4, pad_id=0)
    text = "a text far longer than a few tokens"
    assert TextCodec(byte_level_json, cutting).encode(text) == codec.encode(text)
    assert cutting.encode([text]).input_ids.shape == (1, 4)
