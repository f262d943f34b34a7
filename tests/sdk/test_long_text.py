"""Long texts: nothing is lost, parts keep their size, levels and memory are bounded."""

from __future__ import annotations

import re
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from edgescribe.errors import InputError, UsageError
from edgescribe.sdk.long_text import LongProgress, LongSummary, split_turns, summarize_long
from edgescribe.sdk.sentences import sentences
from edgescribe.sdk.turn import Turn
from hypothesis import given
from hypothesis import strategies as st


def word_count(text: str) -> int:
    """Two tokens that are added, one for each word and one for each mark, as many tokenizers do."""
    return 2 + len(re.findall(r"\w+|[^\w\s]", text))


def byte_count(text: str) -> int:
    return 1 + len(text.encode())


def jumpy_count(text: str) -> int:
    """Tokens of a whole are more than those of its pieces."""
    return 1 + len(text.split()) + len(text) // 40


COUNTS: tuple[Callable[[str], int], ...] = (word_count, byte_count, jumpy_count)
SPEECH = st.lists(
    st.builds(
        Turn,
        st.sampled_from(["", "Anna", "Bob van Dyk", "李雷", "A name that is much too long for any part " * 3]),
        st.none(),
        st.text(alphabet="abc de.!? 会议。\n", min_size=1, max_size=120),
    ),
    max_size=8,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Who met Mr. Smith at 3.30 p.m. on Main St. 5.", ["Dr. Who met Mr. Smith at 3.30 p.m. on Main St. 5."]),
        ('He said "Go!" Then he went.', ['He said "Go!"', "Then he went."]),
        ("J. Smith came. I did too. So did I. Yes", ["J. Smith came.", "I did too.", "So did I.", "Yes"]),
        ("会议开始。预算是五百万！好吗？好", ["会议开始。", "预算是五百万！", "好吗？", "好"]),
        ("wait... what? no", ["wait...", "what?", "no"]),
        ("", []),
        (" . ", ["."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected


@given(st.text(alphabet="ab.!? 。\n", max_size=60))
def test_sentences_lose_nothing(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_parts_end_with_sentences_and_repeat_the_speaker() -> None:
    anna = Turn("Anna", 5, " ".join(f"This is my sentence {number}." for number in range(9)))
    parts = list(split_turns([anna, Turn("Bob", 70, "Thanks, Anna.")], word_count, 30, 8))
    assert [part.number for part in parts] == list(range(len(parts)))
    assert parts[0].text.startswith("Anna: This is my sentence 0. This is my sentence 1.")
    assert all(part.text.startswith("Anna: This is my sentence") for part in parts)
    assert parts[-1].text.endswith("\nBob: Thanks, Anna.")
    assert (parts[0].start, parts[0].speakers, parts[-1].speakers) == (5, ("Anna",), ("Anna", "Bob"))
    for before, after in pairwise(parts):
        assert before.text.rpartition(". This")[2] in after.text.splitlines()[0]
        assert after.repeated == 1


def test_without_overlap_nothing_is_repeated() -> None:
    turns = [Turn("", None, " ".join(f"word{number}." for number in range(100)))]
    joined = " ".join(part.text for part in split_turns(turns, word_count, 20))
    assert joined == turns[0].text


@given(SPEECH, st.sampled_from(COUNTS), st.integers(24, 70), st.integers(0, 11))
def test_nothing_is_lost_and_parts_keep_their_size(
    turns: list[Turn], count: Callable[[str], int], size: int, overlap: int
) -> None:
    parts = list(split_turns(turns, count, size, overlap))
    for part in parts:
        assert count(part.text) <= size, part
        assert part.text.strip()
    spoken = [text for turn in turns for text in sentences(turn.text)]
    everything = "".join("".join(part.text.split()) for part in parts)
    for text in spoken:
        if count(text) < size // 2:
            assert count is not word_count or any(text in part.text for part in parts)
    for character in "abcde会议":
        assert everything.count(character) >= sum(text.count(character) for text in spoken)


@given(SPEECH, st.integers(24, 60), st.integers(0, 11))
def test_new_text_comes_once_and_in_its_order(turns: list[Turn], size: int, overlap: int) -> None:
    """What a part repeats aside, parts are the text: shown with speakers left out."""
    unnamed = [Turn("", None, turn.text) for turn in turns]
    once = "".join("".join(part.text.split()) for part in split_turns(unnamed, word_count, size, 0))
    assert once == "".join("".join(turn.text.split()) for turn in turns)
    parts = list(split_turns(unnamed, word_count, size, overlap))
    assert all(part.repeated < 1 + overlap for part in parts)


@pytest.mark.parametrize(
    "text",
    [
        " ".join(f"word{number}" for number in range(10_000)),
        "会议讨论了预算" * 1500,
        "x" * 50_000,
        "é" * 9_000,
        "👩‍👩‍👧‍👦" * 2000,
    ],
    ids=["words", "chinese", "one word", "accents", "emoji"],
)
@pytest.mark.parametrize("count", COUNTS)
def test_one_sentence_without_end(text: str, count: Callable[[str], int]) -> None:
    parts = list(split_turns([Turn("Anna", None, text)], count, 64, 10))
    assert all(count(part.text) <= 64 for part in parts)
    joined = "".join(part.text.replace("Anna: ", "", 1) for part in parts)
    assert joined.replace(" ", "").replace("\n", "") == text.replace(" ", "")
    if " " in text and count is word_count:
        assert all(re.fullmatch(r"word\d+", word) for part in parts for word in part.text.split()[1:])


def test_sizes_that_make_no_sense_are_refused() -> None:
    for size, overlap, message in ((15, 0, "too small"), (64, 32, "less than half"), (64, -1, "less than half")):
        with pytest.raises(UsageError, match=message):
            split_turns("text", word_count, size, overlap)
    with pytest.raises(UsageError, match="too little room"):
        split_turns("text", lambda text: 20 + len(text), 64)
    with pytest.raises(UsageError, match="at least 2 and 1"):
        summarize_long("text", str, word_count, part_tokens=64, fan_in=1)


# Summaries


def first_words(text: str) -> str:
    """A summary of a kind: the first 6 words without speakers' names."""
    return " ".join(re.sub(r"^\w+: ", "", text, flags=re.M).split()[:6])


def events(source: object, summarize: Callable[[str], str] = first_words, **options: int) -> list[LongSummary]:
    settings = {"part_tokens": 40} | options
    return list(summarize_long(source, summarize, word_count, **settings))  # type: ignore[arg-type]


def speech(count: int) -> Iterator[Turn]:
    for number in range(count):
        yield Turn(f"Speaker{number % 3}", float(number), f"Sentence number {number} says a little more than that.")


@pytest.mark.parametrize("source", ["", " \n ", [], "WEBVTT\n"])
def test_nothing_gives_nothing_and_says_so(source: object) -> None:
    assert events(source) == [LongSummary("", 0, 0, 0, None, True, "empty")]


@pytest.mark.parametrize("text", ["Hello.", "word", "你好", "Two words", "...", "Anna: Yes, fine."])
def test_a_few_words_are_their_own_summary(text: str) -> None:
    asked = []
    (found,) = events(text, lambda text: asked.append(text) or "never")  # type: ignore[func-returns-value]
    assert (found.text, found.final, found.reason) == (text, True, "short")
    assert not asked


@pytest.mark.parametrize("source", [b"bytes", 5, None, ["text", "list"], [b"x"]])
def test_what_is_no_text_is_refused(source: object) -> None:
    with pytest.raises(InputError, match="are summarised"):
        events(source)


def test_one_part_is_the_whole() -> None:
    found = events([Turn("Anna", 3, "We talked about the budget for a while today.")])
    assert [(each.text, each.final, each.reason) for each in found] == [
        ("We talked about the budget for", False, ""),
        ("We talked about the budget for", True, "one-part"),
    ]
    assert found[-1].start == 3


def test_parts_are_summarised_and_merged_in_their_order() -> None:
    asked: list[str] = []

    def summarize(text: str) -> str:
        assert word_count(text) <= 40
        asked.append(text)
        return first_words(text)

    found = events(speech(60), summarize, fan_in=3)
    parts = [each for each in found if each.level == 0]
    assert [each.first_part for each in parts] == list(range(len(parts)))
    assert len(parts) > 9
    last = found[-1]
    assert (last.final, last.reason, last.first_part, last.last_part) == (True, "merged", 0, len(parts) - 1)
    assert last.text.startswith("Sentence number 0")
    assert sum(each.final for each in found) == 1
    for merged in found:
        if merged.level:
            covered = range(merged.first_part, merged.last_part + 1)
            assert merged.start == parts[covered[0]].start
            assert len(covered) > 1
    assert len(asked) == len(found)


@given(st.integers(1, 120), st.integers(2, 9), st.integers(1, 3), st.sampled_from([1, 5, 30, 500]))
def test_levels_are_bounded_and_all_parts_are_covered(count: int, fan_in: int, levels: int, length: int) -> None:
    def summarize(text: str) -> str:
        assert word_count(text) <= 40
        return "s " * length

    found = events(speech(count), summarize, fan_in=fan_in, max_levels=levels)
    assert max(each.level for each in found) <= levels
    parts = [each for each in found if each.level == 0 and not each.final]
    assert (found[-1].first_part, found[-1].last_part) == (0, len(parts) - 1)
    assert found[-1].final
    assert word_count(found[-1].text) <= 20 + 2


def test_summaries_that_are_empty_are_left_out() -> None:
    assert events(speech(30), lambda text: "")[-1].reason == "empty"
    found = events(speech(30), lambda text: "" if "number 0" in text else first_words(text))
    assert found[-1].reason == "merged"
    assert "number 0" not in found[-1].text


def test_progress_is_told() -> None:
    told: list[LongProgress] = []
    found = list(
        summarize_long(speech(40), first_words, word_count, part_tokens=40, fan_in=3, on_progress=told.append)
    )
    parts = sum(each.level == 0 for each in found)
    assert [each.parts for each in told[:parts]] == list(range(1, parts + 1))
    assert told[-1].merges == sum(each.level > 0 for each in found)
    assert told[-1].characters == sum(len(turn.text) for turn in speech(40))
    assert all(a.characters <= b.characters for a, b in pairwise(told))


def test_the_first_summary_comes_before_the_text_ends() -> None:
    read = 0

    def endless() -> Iterator[Turn]:
        nonlocal read
        while True:
            read += 1
            yield Turn("Anna", None, f"Sentence number {read} says a little more than that.")

    found = summarize_long(endless(), first_words, word_count, part_tokens=40)
    assert next(found).text.startswith("Sentence number 1")
    assert read < 20
    for _ in range(200):
        last = next(found)
    assert not last.final
    found.close()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text() -> None:
    def peak(words: int) -> int:
        tracemalloc.start()
        made = summarize_long(speech(words // 9), first_words, word_count, part_tokens=200, overlap_tokens=40)
        (last,) = deque(made, maxlen=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert last.final
        return most

    peak(2_000)  # caches of the interpreter
    assert peak(200_000) < peak(20_000) + 30_000
