"""Trimmed vocabularies: text of the domain is cut as before, other text into the pieces that are left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from edgescribe.converters.student import Student
from edgescribe.converters.vocabulary import trim_vocabulary, trimmed_size
from edgescribe.errors import RecipeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

KINDS = {"wordpiece": "bert", "bpe": "roberta", "unigram": "albert"}
MakeStudent = Callable[..., Student]
WORDS = ["game", "chess", "network", "packets", "music", "archives", "kernel", "Netz", "für", "mail", "ing", "s", "x1"]
wild = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join),
    st.text(max_size=40),
    st.text(alphabet="aeinrst xyz'-,Ä漢字\u200d\u0301😀", max_size=40),
)
some = settings(max_examples=60, deadline=None)


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(tokenizer.encode(text).tokens)


@pytest.mark.parametrize("kind", KINDS)
@some
@given(domain=st.lists(wild, min_size=1, max_size=8))
def test_domain_text_is_cut_as_before(make_student: MakeStudent, kind: str, domain: list[str]) -> None:
    student = make_once(make_student, kind)
    trimmed = trim_vocabulary(student, domain)
    for text in domain:
        assert tokens_of(trimmed.tokenizer, text) == tokens_of(student.tokenizer, text)
    check_ids(student, trimmed)
    assert trimmed_size(student, domain) == trimmed.shape.vocabulary


STUDENTS: dict[str, Student] = {}


def make_once(make_student: MakeStudent, kind: str) -> Student:
    if kind not in STUDENTS:
        STUDENTS[kind] = make_student(KINDS[kind])
    return STUDENTS[kind]


def check_ids(student: Student, trimmed: Student) -> None:
    """Tokens stand in their old order, each row of the table is its token's, and special tokens are the same."""
    before = student.tokenizer.get_vocab(with_added_tokens=True)
    after = trimmed.tokenizer.get_vocab(with_added_tokens=True)
    assert set(after) <= set(before)
    assert sorted(after, key=after.__getitem__) == sorted(after, key=before.__getitem__)
    assert sorted(after.values()) == list(range(trimmed.shape.vocabulary))
    table = next(name for name in student.state if name.endswith(("word_embeddings.weight", "word_embedding.weight")))
    assert trimmed.state[table].shape[0] == trimmed.shape.vocabulary
    for token, number in after.items():
        assert (trimmed.state[table][number] == student.state[table][before[token]]).all()
    assert trimmed.pad_id == after[str(trimmed.tokenizer_config["pad_token"])]
    assert trimmed.config["pad_token_id"] == trimmed.pad_id
    added = {entry.content: number for number, entry in trimmed.tokenizer.get_added_tokens_decoder().items()}
    assert set(added) == {entry.content for entry in student.tokenizer.get_added_tokens_decoder().values()}
    assert all(after[token] == number for token, number in added.items())
    described = trimmed.tokenizer_config.get("added_tokens_decoder", {})
    assert all(after[entry["content"]] == int(number) for number, entry in described.items())
    template = json.loads(trimmed.tokenizer.to_str())["post_processor"]["special_tokens"]
    assert all(entry["ids"] == [after[name]] for name, entry in template.items())


@pytest.mark.parametrize("kind", KINDS)
@some
@given(domain=st.lists(wild, min_size=1, max_size=4), other=wild)
def test_other_text_is_still_cut(make_student: MakeStudent, kind: str, domain: list[str], other: str) -> None:
    """A token that went becomes its pieces, or the unknown where the old tokenizer knew no way either."""
    student = make_once(make_student, kind)
    trimmed = trim_vocabulary(student, domain)
    encoding = trimmed.tokenizer.encode(other)
    assert all(0 <= number < trimmed.shape.vocabulary for number in encoding.ids)
    unknown = str(trimmed.tokenizer_config["unk_token"])
    if unknown not in tokens_of(student.tokenizer, other) and all(ord(character) < 0x2E80 for character in other):
        assert unknown not in encoding.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_went_becomes_its_pieces(make_student: MakeStudent, kind: str) -> None:
    student = make_once(make_student, kind)
    trimmed = trim_vocabulary(student, ["music"])
    before, after = tokens_of(student.tokenizer, "network"), tokens_of(trimmed.tokenizer, "network")
    assert len(after) > len(before)
    bare = "".join(after[1:-1]).replace("##", "").replace("▁", "")
    assert bare == "network"


def test_a_bound_keeps_the_most_frequent(make_student: MakeStudent, sentences: list[str]) -> None:
    student = make_once(make_student, "wordpiece")
    whole = trimmed_size(student, sentences)
    smaller = trim_vocabulary(student, sentences * 2 + ["the the the"], whole - 3)
    assert smaller.shape.vocabulary <= whole - 3
    assert tokens_of(smaller.tokenizer, "the") == tokens_of(student.tokenizer, "the")
    check_ids(student, smaller)


def with_tokenizer(student: Student, tokenizer: Tokenizer) -> Student:
    """The student with another tokenizer, whose tokens are fewer than its rows."""
    assert tokenizer.get_vocab_size() <= student.shape.vocabulary
    return replace(student, tokenizer=tokenizer)


def wordpiece(tokens: list[str]) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate(special + tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    return tokenizer


def test_a_word_that_was_unknown_stays_unknown(make_student: MakeStudent) -> None:
    """The greedy cut of "abc" fails after "ab"; without "ab" it would find "a" and "##bc"."""
    student = with_tokenizer(make_once(make_student, "wordpiece"), wordpiece(["ab", "a", "##bc", "q"]))
    trimmed = trim_vocabulary(student, ["abc", "a", "abcabc", "q"])
    assert tokens_of(trimmed.tokenizer, "abc") == ["[UNK]"]


@some
@given(
    pieces=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=12),
    domain=st.lists(st.text(alphabet="abc ", max_size=12), min_size=1, max_size=5),
    inner=st.randoms(use_true_random=False),
)
def test_any_wordpiece_vocabulary(
    make_student: MakeStudent, pieces: list[str], domain: list[str], inner: Any
) -> None:
    tokens = list(dict.fromkeys(inner.choice(["", "##"]) + piece for piece in pieces))
    student = with_tokenizer(make_once(make_student, "wordpiece"), wordpiece(tokens))
    trimmed = trim_vocabulary(student, domain)
    for text in domain:
        assert tokens_of(trimmed.tokenizer, text) == tokens_of(student.tokenizer, text)


@some
@given(
    pieces=st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=4), st.integers(-30, -1), max_size=12),
    domain=st.lists(st.text(alphabet="abcd", max_size=12), min_size=1, max_size=5),
)
def test_any_unigram_vocabulary(make_student: MakeStudent, pieces: dict[str, int], domain: list[str]) -> None:
    vocabulary = [("<pad>", 0.0), ("<unk>", 0.0), *((piece, float(score)) for piece, score in pieces.items())]
    student = with_tokenizer(make_once(make_student, "unigram"), Tokenizer(models.Unigram(vocabulary, unk_id=1)))
    student = replace(student, config={**student.config, "bos_token_id": None, "eos_token_id": None})
    trimmed = trim_vocabulary(student, domain)
    for text in domain:
        assert tokens_of(trimmed.tokenizer, text) == tokens_of(student.tokenizer, text)


def test_merges_with_prefixes_and_suffixes(make_student: MakeStudent) -> None:
    """BPE as of CLIP (a mark at the end of words) and as of old trainers (a mark at the start of later pieces)."""
    for prefix, suffix in (("##", ""), ("", "</w>")):
        marks = {"continuing_subword_prefix": prefix, "end_of_word_suffix": suffix}
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **marks))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(
            vocab_size=120,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            show_progress=False,
            **marks,
        )
        tokenizer.train_from_iterator(["lower lowest newer newest wider widest"] * 4, trainer)
        student = with_tokenizer(make_once(make_student, "bpe"), tokenizer)
        trimmed = trim_vocabulary(student, ["lowest wider"])
        assert trimmed.shape.vocabulary < tokenizer.get_vocab_size()
        assert tokens_of(trimmed.tokenizer, "lowest wider") == tokens_of(tokenizer, "lowest wider")
        assert "<unk>" not in tokens_of(trimmed.tokenizer, "newest lower")


def test_numbers_inside_other_post_processors(make_student: MakeStudent) -> None:
    for processor in (
        processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
        processors.Sequence([processors.ByteLevel(), processors.BertProcessing(("</s>", 2), ("<s>", 0))]),
    ):
        student = make_once(make_student, "bpe")
        tokenizer = Tokenizer.from_str(student.tokenizer.to_str())
        tokenizer.post_processor = processor
        trimmed = trim_vocabulary(with_tokenizer(student, tokenizer), ["music"])
        ids = trimmed.tokenizer.encode("music").ids
        assert (ids[0], ids[-1]) == tuple(trimmed.tokenizer.token_to_id(token) for token in ("<s>", "</s>"))


def test_what_cannot_be_trimmed_is_refused(make_student: MakeStudent) -> None:
    student = make_once(make_student, "wordpiece")
    with pytest.raises(RecipeError, match="domain text"):
        trim_vocabulary(student, [])
    with pytest.raises(RecipeError, match="must stay"):
        trim_vocabulary(student, ["music"], 9)


def test_a_bound_below_what_must_stay_names_it(make_student: MakeStudent) -> None:
    student = make_once(make_student, "bpe")
    with pytest.raises(RecipeError, match=r"\d+ tokens must stay"):
        trim_vocabulary(student, ["music"], 200)


def test_word_level_vocabularies(make_student: MakeStudent) -> None:
    student = make_once(make_student, "wordpiece")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trimmed = trim_vocabulary(with_tokenizer(student, tokenizer), ["two"])
    assert tokens_of(trimmed.tokenizer, "two one") == ["two", "[UNK]"]
