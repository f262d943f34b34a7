"""A summariser over a real, tiny model: texts, streams, stopping, several at a time, options, long texts."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe import load_summarizer
from edgescribe.errors import BundleError, EngineError, InputError, UsageError
from edgescribe.sdk.session_turns import LEND_AFTER
from edgescribe.sdk.summarizer import Summarizer
from edgescribe.sdk.text_codec import TextCodec
from edgescribe.sdk.turn import Turn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TEXT = "The committee met on Monday; the committee adjourned on Tuesday until March."
OTHER = "A small daemon routes packets between the hosts"


def test_pieces_are_the_text_and_the_figures_fit(summarizer: Summarizer, codec: TextCodec) -> None:
    found = summarizer.summarize(TEXT, max_new_tokens=20)
    with summarizer.stream(TEXT, max_new_tokens=20) as stream:
        pieces = list(stream)
    assert "".join(pieces) == found.text == codec.decode(found.tokens)
    assert all(pieces)
    assert found.source_tokens == len(codec.encode(TEXT)) == len(summarizer.source_tokens(TEXT))
    assert (found.num_beams, found.score, found.seed, found.truncated) == (1, None, None, False)
    assert 0 < found.timings.read <= found.timings.first_token <= found.timings.total
    assert found.tokens_per_s == pytest.approx(len(found.tokens) / found.timings.total)
    assert summarizer.context == 40
    assert "sources of 96 tokens" in repr(summarizer)


def test_several_texts_are_summarised_in_their_order(summarizer: Summarizer) -> None:
    alone = [summarizer.summarize(text, max_new_tokens=9).tokens for text in (TEXT, "", OTHER)]
    assert [found.tokens for found in summarizer.summarize([TEXT, "", OTHER], max_new_tokens=9)] == alone
    assert [found.tokens for found in summarizer.summarize((TEXT,), max_new_tokens=9)] == alone[:1]
    assert summarizer.summarize([]) == []
    assert alone[0] != alone[2]


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000\u00a0\n"])
@pytest.mark.parametrize("beams", [1, 3])
def test_of_blanks_the_summary_is_empty(summarizer: Summarizer, text: str, beams: int) -> None:
    found = summarizer.summarize(text, num_beams=beams)
    assert (found.text, found.tokens, found.finish_reason, found.source_tokens) == ("", (), "stop", 0)
    assert found.tokens_per_s == 0
    with summarizer.borrowed() as session:
        assert session.source_length == 0


@pytest.mark.parametrize("text", [None, b"bytes", 3, {"text": "x"}, ["fine", b"bytes"], [["nested"]]])
def test_what_is_no_text_is_refused(summarizer: Summarizer, text: Any) -> None:
    with pytest.raises(InputError, match="pass a str"):
        summarizer.summarize(text)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=60), beams=st.integers(1, 3), size=st.integers(0, 3), count=st.integers(0, 12),
    least=st.integers(0, 12), stop=st.lists(st.sampled_from(["a", "th", "the"]), max_size=2),
)  # fmt: skip
def test_any_text_has_a_summary_within_its_limits(
    summarizer: Summarizer, text: str, beams: int, size: int, count: int, least: int, stop: list[str]
) -> None:
    least = min(least, count)
    options: Any = {
        "num_beams": beams, "no_repeat_ngram_size": size, "max_new_tokens": count, "min_new_tokens": least, "stop": stop
    }  # fmt: skip
    found = summarizer.summarize(text, **options)
    assert summarizer.summarize(text, **options).text == found.text
    assert len(found.tokens) <= count
    assert not any(each in found.text for each in stop)
    if text.strip() and found.stop is None:
        assert len(found.tokens) >= least
    grams = [found.tokens[place : place + size] for place in range(len(found.tokens) + 1 - size)]
    assert size == 0 or len(set(grams)) == len(grams)


def test_same_seed_same_summary_whatever_was_written_before(summarizer: Summarizer) -> None:
    options: Any = {"temperature": 1.5, "max_new_tokens": 15, "top_p": 0.95}
    first = summarizer.summarize(TEXT, seed=4, **options)
    summarizer.summarize(OTHER, max_new_tokens=5)
    summarizer.summarize(OTHER, num_beams=3, max_new_tokens=5)
    assert summarizer.summarize(TEXT, seed=4, **options).tokens == first.tokens
    assert first.seed == 4
    assert len({summarizer.summarize(TEXT, seed=seed, **options).tokens for seed in range(4)}) > 1
    drawn = summarizer.summarize(TEXT, **options)
    assert summarizer.summarize(TEXT, seed=drawn.seed, **options).tokens == drawn.tokens


def test_lookup_copies_from_the_source_and_changes_nothing(session_of: Callable[..., Any], codec: TextCodec) -> None:
    session = session_of()
    summarizer = Summarizer(session, codec, start_tokens=[0], end_tokens=[1])
    plain = summarizer.summarize(TEXT, max_new_tokens=30, lookup=False)
    assert plain.lookup is None
    session.runs.clear()
    guessed = summarizer.summarize(TEXT, max_new_tokens=30, lookup=True)
    assert guessed.tokens == plain.tokens
    assert guessed.lookup is not None
    assert guessed.lookup.verifies + guessed.lookup.steps == len(session.runs)
    assert summarizer.summarize(TEXT, max_new_tokens=30).lookup is not None  # this session verifies alike

    from edgescribe.sdk.prompt_lookup import PromptLookup

    seen: list[list[int]] = []
    original = PromptLookup.__init__

    def noted(self: PromptLookup, tokens: Any, most: int) -> None:
        seen.append(list(tokens))
        original(self, seen[-1], most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptLookup, "__init__", noted)
        summarizer.summarize(TEXT, max_new_tokens=3, lookup=True)
    assert seen == [[*codec.encode(TEXT), 0]]


def test_a_text_that_is_too_long_is_refused_or_cut(summarizer: Summarizer, codec: TextCodec) -> None:
    text = TEXT * 3
    tokens = codec.encode(text)
    with pytest.raises(InputError, match=rf"{len(tokens)} tokens.*96 at once.*summarize_long"):
        summarizer.summarize(text)
    found = summarizer.summarize(text, truncate=True, max_new_tokens=12)
    assert found.truncated
    assert found.source_tokens == 96
    with summarizer.borrowed() as session:
        session.read([*tokens[:95], 1])
        assert int(session.prefill([0]).argmax()) == found.tokens[0]
    assert not summarizer.summarize(TEXT, truncate=True, max_new_tokens=2).truncated


def test_the_prefix_stands_before_every_text(session_of: Callable[..., Any], codec: TextCodec) -> None:
    plain = Summarizer(session_of(), codec, start_tokens=[0], end_tokens=[1])
    prefixed = Summarizer(session_of(), codec, start_tokens=[0], end_tokens=[1], prefix="The dog: ")
    assert prefixed.source_tokens("x") == codec.encode("The dog: x")
    assert prefixed.summarize(TEXT).tokens == plain.summarize("The dog: " + TEXT).tokens
    assert prefixed.summarize(" ").source_tokens == 0


def test_a_bundles_defaults_hold_until_a_call_says_otherwise(session_of: Callable[..., Any], codec: TextCodec) -> None:
    defaults = {"num_beams": 3, "max_new_tokens": 8, "min_new_tokens": 4, "no_repeat_ngram_size": 2}
    one = Summarizer(session_of(), codec, start_tokens=[0], end_tokens=[1], defaults=defaults)
    plain = Summarizer(session_of(), codec, start_tokens=[0], end_tokens=[1])
    options: Any = dict(defaults)
    assert one.summarize(TEXT).tokens == plain.summarize(TEXT, **options).tokens
    assert one.summarize(TEXT).num_beams == 3
    assert one.summarize(TEXT, temperature=1.0, seed=1).num_beams == 1
    assert one.summarize(TEXT, lookup=True).num_beams == 1
    assert len(one.summarize(TEXT, max_new_tokens=2).tokens) == 2  # fewer than the default minimum
    assert one.defaults["length_penalty"] == 1
    with pytest.raises(UsageError, match="default 'beams'"):
        Summarizer(session_of(), codec, start_tokens=[0], defaults={"beams": 2})
    with pytest.raises(UsageError, match="0 tokens start"):
        Summarizer(session_of(), codec, start_tokens=[])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 33}, "1 to 32"),
        ({"num_beams": 2.0}, "num_beams"),
        ({"num_beams": 2, "temperature": 1.0}, "one beam"),
        ({"num_beams": 2, "lookup": True}, "one beam"),
        ({"num_beams": 2, "repetition_penalty": 1.5}, "one beam"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "more than max_new_tokens"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"length_penalty": "2"}, "length_penalty"),
        ({"early_stopping": "sometimes"}, "early_stopping"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"stop": [""]}, "stop string"),
        ({"beams": 3}, "no option 'beams'"),
    ],
    ids=str,
)
def test_options_out_of_range(summarizer: Summarizer, options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        summarizer.summarize(TEXT, **options)


def test_stop_strings(summarizer: Summarizer) -> None:
    for beams in (1, 3):
        full = summarizer.summarize(TEXT, max_new_tokens=20, num_beams=beams).text
        stop = full[5:7]
        found = summarizer.summarize(TEXT, max_new_tokens=20, num_beams=beams, stop=stop)
        assert found.text == full.partition(stop)[0]
        assert (found.stop, found.finish_reason) == (stop, "stop")


def test_constraints(session_of: Callable[..., Any], t5_of: Callable[..., Any], codec: TextCodec) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, OTHER], trainer)
    session = session_of(model=t5_of(0, tokenizer.get_vocab_size()))
    one = Summarizer(session, tokenizer.to_str().encode(), start_tokens=[0], end_tokens=[1])
    for options in ({}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 30}, {"temperature": 2.0, "seed": 1}):
        written = one.summarize("The dog", choices=["the dogs", "a committee"], max_new_tokens=30, **options)
        assert written.text in ("the dogs", "a committee")
    number = one.summarize("The dog", schema={"type": "integer", "minimum": 10, "maximum": 99}, lookup=True)
    assert 10 <= int(number.text) <= 99
    with pytest.raises(UsageError, match="one beam"):
        one.summarize(TEXT, choices=["the dog"], num_beams=2)
    sentence_pieces = Summarizer(session_of(), codec, start_tokens=[0], end_tokens=[1])
    with pytest.raises(BundleError, match="cannot be constrained"):
        sentence_pieces.summarize(TEXT, choices=["the dog"])


def test_the_context_ends_a_summary(session_of: Callable[..., Any], codec: TextCodec) -> None:
    for beams in (1, 2):
        small = Summarizer(session_of(context=6), codec, start_tokens=[0], end_tokens=[])
        found = small.summarize(TEXT, num_beams=beams)
        assert (len(found.tokens), found.finish_reason) == (6, "length")
        assert small.summarize(TEXT, num_beams=beams, max_new_tokens=0).finish_reason == "length"


@pytest.mark.parametrize("beams", [1, 3])
def test_cancelling_from_another_thread(session_of: Callable[..., Any], codec: TextCodec, beams: int) -> None:
    session = session_of()
    summarizer = Summarizer(session, codec, start_tokens=[0], end_tokens=[])
    stream = summarizer.stream(TEXT, num_beams=beams, lookup=False)

    def cancel() -> None:
        if len(session.runs) == 5:
            thread = threading.Thread(target=stream.cancel)
            thread.start()
            thread.join()

    session.before_run = cancel
    pieces = list(stream)
    assert stream.result.finish_reason == "cancelled"
    assert "".join(pieces) == stream.result.text
    assert len(session.runs) == 6
    session.before_run = lambda: None
    assert summarizer.summarize(TEXT, max_new_tokens=3).finish_reason == "length"


def test_closing_gives_the_session_free(summarizer: Summarizer) -> None:
    expected = summarizer.summarize(TEXT, max_new_tokens=5).text
    stream = summarizer.stream(TEXT, max_new_tokens=30)
    next(stream)
    with pytest.raises(UsageError, match="not written yet"):
        _ = stream.result
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    unread = summarizer.stream(TEXT)
    unread.close()
    assert (unread.result.text, unread.result.finish_reason) == ("", "cancelled")
    dropped = summarizer.stream(TEXT, num_beams=3)
    del dropped
    assert summarizer.summarize(TEXT, max_new_tokens=5).text == expected


def test_a_stream_left_in_the_middle_reads_its_source_again(session_of: Callable[..., Any], codec: TextCodec) -> None:
    session = session_of()
    summarizer = Summarizer(session, codec, start_tokens=[0], end_tokens=[1])
    whole = summarizer.summarize(TEXT, max_new_tokens=20).text
    stream = summarizer.stream(TEXT, max_new_tokens=20)
    pieces = [next(stream), next(stream)]
    time.sleep(LEND_AFTER)
    other = summarizer.summarize(OTHER, max_new_tokens=5, num_beams=2).text
    session.reads.clear()
    assert "".join([*pieces, *stream]) == whole
    assert session.reads == [len(codec.encode(TEXT))]
    assert summarizer.summarize(OTHER, max_new_tokens=5, num_beams=2).text == other


def test_several_threads_and_forks(summarizer: Summarizer) -> None:
    texts = [TEXT, OTHER, "The dog", TEXT[:30]] * 2
    alone = [summarizer.summarize(text, max_new_tokens=8).text for text in texts]
    beams = [summarizer.summarize(text, max_new_tokens=8, num_beams=2).text for text in texts]
    found: dict[int, list[str]] = {}
    with summarizer.fork() as fork:

        def work(number: int) -> None:
            which = fork if number % 2 else summarizer
            found[number] = [
                which.summarize(texts[number], max_new_tokens=8).text,
                which.summarize(texts[number], max_new_tokens=8, num_beams=2).text,
            ]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[number] for number in range(len(texts))] == [list(each) for each in zip(alone, beams, strict=True)]
    assert summarizer.summarize(TEXT, max_new_tokens=8).text == alone[0]


def test_a_fork_of_one_that_has_read_nothing(session_of: Callable[..., Any], codec: TextCodec) -> None:
    with Summarizer(session_of(), codec, start_tokens=[0], end_tokens=[1]) as one, one.fork() as other:
        assert one.summarize(TEXT, max_new_tokens=8).tokens == other.summarize(TEXT, max_new_tokens=8).tokens


def test_async_streams(summarizer: Summarizer) -> None:
    async def both() -> tuple[str, str]:
        async with summarizer.astream(TEXT, max_new_tokens=10) as stream:
            pieces = [piece async for piece in stream]
            return "".join(pieces), stream.result.text

    got, text = asyncio.run(both())
    assert got == text == summarizer.summarize(TEXT, max_new_tokens=10).text


def test_closed(session_of: Callable[..., Any], codec: TextCodec) -> None:
    summarizer = Summarizer(session_of(), codec, start_tokens=[0])
    stream = summarizer.stream(TEXT, max_new_tokens=30)
    next(stream)
    summarizer.close()
    summarizer.close()
    with pytest.raises(UsageError, match="this summariser was closed"):
        list(stream)
    for use in (summarizer.summarize, summarizer.stream, summarizer.summarize_long):
        with pytest.raises(UsageError, match="closed"):
            use(TEXT)
    with pytest.raises(UsageError, match="not loaded from a bundle"):
        _ = summarizer.info


@pytest.mark.parametrize("beams", [1, 3])
def test_a_failing_engine_leaves_a_usable_summariser(
    session_of: Callable[..., Any], codec: TextCodec, beams: int
) -> None:
    session = session_of()
    summarizer = Summarizer(session, codec, start_tokens=[0], end_tokens=[1])
    expected = summarizer.summarize(TEXT, num_beams=beams, max_new_tokens=8, min_new_tokens=8).text
    session.runs.clear()

    def fail() -> None:
        if len(session.runs) == 2:
            raise EngineError("out of breath")

    session.before_run = fail
    with pytest.raises(EngineError, match="out of breath"):
        summarizer.summarize(TEXT, num_beams=beams, max_new_tokens=8, min_new_tokens=8, lookup=False)
    session.before_run = lambda: None
    assert summarizer.summarize(TEXT, num_beams=beams, max_new_tokens=8, min_new_tokens=8).text == expected
    session._run = lambda tokens, wanted: np.full((wanted, session.vocabulary), np.nan, np.float32)
    with pytest.raises(EngineError, match="nan"):
        summarizer.summarize(TEXT, num_beams=beams)


def spoken(count: int) -> Iterator[Turn]:
    for number in range(count):
        yield Turn(("Anna", "Peter")[number % 2], 5.0 * number, f"The committee met on Monday, and {number} did not.")


def test_long_texts_in_parts(summarizer: Summarizer, tmp_path: Any) -> None:
    told: list[Any] = []
    found = list(summarizer.summarize_long(spoken(30), on_progress=told.append, max_new_tokens=6, min_new_tokens=3))
    assert [each.final for each in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].reason == "merged"
    assert found[-1].text
    assert found[-1].first_part == 0
    assert found[-1].last_part == told[-1].parts - 1
    lines = "\n".join(f"{turn.speaker}: {turn.text}" for turn in spoken(30))
    texts = [each.text for each in summarizer.summarize_long(lines, max_new_tokens=6, min_new_tokens=3)]
    assert texts == [each.text for each in found]
    path = tmp_path / "meeting.txt"
    path.write_text(lines)
    assert texts == [each.text for each in summarizer.summarize_long(path, max_new_tokens=6, min_new_tokens=3)]
    (one,) = (each for each in summarizer.summarize_long(TEXT, max_new_tokens=6) if each.final)
    assert one.reason == "one-part"
    assert one.text == summarizer.summarize(TEXT, max_new_tokens=6).text.strip()
    assert [each.reason for each in summarizer.summarize_long("")] == ["empty"]
    assert [each.text for each in summarizer.summarize_long("Hello")] == ["Hello"]
    with pytest.raises(InputError, match="a text or a transcript"):
        list(summarizer.summarize_long(b"bytes"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="reads 96 at once"):
        summarizer.summarize_long(TEXT, part_tokens=97)
    with pytest.raises(UsageError, match="num_beams"):
        summarizer.summarize_long(TEXT, num_beams=0)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_long_text(summarizer_folder: Path) -> None:
    with load_summarizer(summarizer_folder, runtime="onnxruntime", threads=1) as summarizer:

        def peak(count: int) -> int:
            gc.collect()
            gc.freeze()  # what is there already need not be looked through each time
            tracemalloc.start()
            for _ in summarizer.summarize_long(spoken(count), max_new_tokens=3, min_new_tokens=3):
                gc.collect()
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            gc.unfreeze()
            return found

        peak(30)  # fills what is kept for every token
        assert peak(120) < peak(30) + 100_000  # what is known of one part alone takes some thousand bytes
