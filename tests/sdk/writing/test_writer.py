"""A writer over a real, tiny model: texts, streams, stopping, several at a time, scores."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest
from edgescribe.errors import EngineError, InputError, UsageError
from edgescribe.sdk.sampling import Sampling
from edgescribe.sdk.text_codec import TextCodec
from edgescribe.sdk.writer import Writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PROMPT = "The committee met on Monday; the committee"


def test_greedy_text_is_that_of_the_model_alone(writer: Writer, codec: TextCodec, torch_session: Any) -> None:
    result = writer.generate(PROMPT, max_new_tokens=24)
    session, tokens = torch_session(), []
    logits = session.prefill(codec.encode(PROMPT))
    while len(tokens) < 24:
        tokens.append(int(logits.argmax()))
        logits = session.step(tokens[-1])
    assert list(result.tokens) == tokens
    assert result.finish_reason == "length"
    assert result.prompt_tokens == len(codec.encode(PROMPT))
    assert result.text == "".join(writer.stream(PROMPT, max_new_tokens=24))
    assert result.seed is None
    assert result.timings.total >= result.timings.first_token > 0


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    prompt=st.text(min_size=1, max_size=40), temperature=st.floats(0, 3), seed=st.integers(0, 99),
    count=st.integers(0, 30), top_k=st.integers(0, 20), stop=st.lists(st.sampled_from(["a", "th", "\n"]), max_size=2),
)  # fmt: skip
def test_same_seed_same_text_whatever_was_written_before(
    writer: Writer,
    codec: TextCodec,
    prompt: str,
    temperature: float,
    seed: int,
    count: int,
    top_k: int,
    stop: list[str],
) -> None:
    options: Any = {
        "temperature": temperature, "seed": seed, "max_new_tokens": count, "top_k": top_k, "top_p": 0.95, "stop": stop,
    }  # fmt: skip
    first = writer.generate(prompt, **options)
    writer.generate(prompt[: len(prompt) // 2] + "else", max_new_tokens=3)
    with writer.stream(prompt, **options) as stream:
        pieces = list(stream)
    again = stream.result
    assert (again.tokens, again.text, again.finish_reason) == (first.tokens, first.text, first.finish_reason)
    assert "".join(pieces) == first.text
    assert all(pieces)
    assert len(first.tokens) <= count
    assert not any(each in first.text for each in stop)
    if first.stop is None:
        assert first.text == codec.decode([codec.encode("x")[0], *first.tokens])[1:]


def test_end_token_ends_the_text(torch_session: Any, codec: TextCodec) -> None:
    tokens = Writer(torch_session(), codec).generate(PROMPT, max_new_tokens=10).tokens
    end = next(token for place, token in enumerate(tokens) if place and token not in tokens[:place])
    result = Writer(torch_session(), codec, end_tokens=[end]).generate(PROMPT, max_new_tokens=10)
    assert result.tokens == tokens[: tokens.index(end)]
    assert (result.finish_reason, result.stop) == ("stop", None)


def test_text_ends_at_the_end_of_the_context(torch_session: Any, codec: TextCodec) -> None:
    count = len(codec.encode(PROMPT))
    for room in (0, 1, 5):
        writer = Writer(torch_session(context=count + room), codec)
        result = writer.generate(PROMPT, max_new_tokens=100, lookup=True)
        assert len(result.tokens) == room + 1
        assert result.finish_reason == "length"
    with pytest.raises(InputError, match=r"1 tokens or more.*larger context"):
        Writer(torch_session(context=count - 1), codec).generate(PROMPT)
    with pytest.raises(InputError, match="no token"):
        writer.generate("")
    assert writer.generate(PROMPT, max_new_tokens=0).text == ""


def test_cancelling_from_another_thread_stops_within_one_token(torch_session: Any, codec: TextCodec) -> None:
    session = torch_session()
    writer = Writer(session, codec)
    stream = writer.stream(PROMPT, max_new_tokens=200, lookup=False)
    runs_at_cancel = []

    def cancel_in_the_fifth_step() -> None:
        if len(session.runs) == 7:
            thread = threading.Thread(target=stream.cancel)
            thread.start()
            thread.join()
            runs_at_cancel.append(len(session.runs) + 1)

    session.before_run = cancel_in_the_fifth_step
    pieces = list(stream)
    assert runs_at_cancel == [len(session.runs)]
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text == "".join(pieces)
    session.before_run = lambda: None
    assert writer.generate(PROMPT, max_new_tokens=3).finish_reason == "length"


def test_a_long_prompt_can_be_cancelled_between_chunks(torch_session: Any, codec: TextCodec) -> None:
    session = torch_session()
    stream = Writer(session, codec).stream("x" * 100, lookup=False)
    session.before_run = lambda: stream.cancel() if len(session.runs) == 1 else None
    assert list(stream) == []
    assert len(session.runs) == 2
    assert (stream.result.tokens, stream.result.finish_reason) == ((), "cancelled")


def test_closing_or_dropping_a_stream_gives_the_session_free(writer: Writer) -> None:
    expected = writer.generate(PROMPT, max_new_tokens=5).text
    stream = writer.stream(PROMPT, max_new_tokens=50)
    next(stream)
    with pytest.raises(UsageError, match="not written yet"):
        _ = stream.result
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    assert list(stream) == []
    dropped = writer.stream(PROMPT, max_new_tokens=50)
    next(dropped)
    del dropped
    for piece in writer.stream(PROMPT):
        assert piece
        break
    unread = writer.stream(PROMPT)
    unread.close()
    assert unread.result.text == ""
    assert writer.generate(PROMPT, max_new_tokens=5).text == expected


def test_texts_of_several_threads_are_those_of_one(writer: Writer) -> None:
    prompts = [f"{PROMPT} {number}" for number in range(6)]
    expected = [writer.generate(prompt, max_new_tokens=8, temperature=1.0, seed=1).text for prompt in prompts]
    found: dict[int, str] = {}

    def write(number: int) -> None:
        found[number] = writer.generate(prompts[number], max_new_tokens=8, temperature=1.0, seed=1).text

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[number] for number in range(6)] == expected


def test_a_stream_that_is_not_read_lends_its_session(writer: Writer) -> None:
    expected = writer.generate(PROMPT, max_new_tokens=12, lookup=False).text
    nested = writer.generate("x", max_new_tokens=4).text
    pieces = []
    with writer.stream(PROMPT, max_new_tokens=12, lookup=False) as stream:
        for number, piece in enumerate(stream):
            pieces.append(piece)
            if number in (1, 4):
                assert writer.generate("x", max_new_tokens=4).text == nested
    assert "".join(pieces) == expected


def test_async_streams(writer: Writer) -> None:
    expected = writer.generate(PROMPT, max_new_tokens=6).text

    async def read(prompt: str) -> str:
        async with writer.astream(prompt, max_new_tokens=6) as stream:
            pieces = [piece async for piece in stream]
        assert stream.result.finish_reason == "length"
        return "".join(pieces)

    async def both() -> list[str]:
        return await asyncio.gather(read(PROMPT), read(PROMPT))

    assert asyncio.run(both()) == [expected, expected]


def test_a_cancelled_task_cancels_its_text(torch_session: Any, codec: TextCodec) -> None:
    session = torch_session()
    writer = Writer(session, codec)
    begun = threading.Event()
    session.before_run = lambda: (begun.set(), time.sleep(0.05))

    async def read() -> None:
        async for _ in writer.astream(PROMPT, max_new_tokens=200):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(read())
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stopped = len(session.runs)
        await asyncio.sleep(0.3)
        assert len(session.runs) <= stopped + 1

    asyncio.run(cancel())
    session.before_run = lambda: None
    assert writer.generate(PROMPT, max_new_tokens=2).tokens


def test_two_readers_of_one_text_are_refused(torch_session: Any, codec: TextCodec) -> None:
    session = torch_session()
    stream = Writer(session, codec).stream(PROMPT)
    refused = []

    def read_too() -> None:
        try:
            next(stream)
        except UsageError as error:
            refused.append(str(error))

    def start() -> None:
        session.before_run = lambda: None
        thread = threading.Thread(target=read_too)
        thread.start()
        thread.join()

    session.before_run = start
    next(stream)
    assert len(refused) == 1
    assert "another thread" in refused[0]


def test_failing_engines_leave_the_writer_usable(torch_session: Any, codec: TextCodec) -> None:
    session = torch_session()
    writer = Writer(session, codec)
    expected = writer.generate(PROMPT, max_new_tokens=6).tokens

    def fail() -> None:
        if len(session.runs) % 3 == 2:
            session.runs.append(0)
            raise EngineError("out of order")

    session.before_run = fail
    with pytest.raises(EngineError, match="out of order"):
        writer.generate(PROMPT, max_new_tokens=20, lookup=False)
    session.before_run = lambda: None
    assert writer.generate(PROMPT, max_new_tokens=6).tokens == expected


def test_closed_writers_say_so(writer: Writer) -> None:
    stream = writer.stream(PROMPT)
    next(stream)
    writer.close()
    writer.close()
    with pytest.raises(UsageError, match="closed"):
        next(stream)
    for call in (lambda: writer.generate(PROMPT), lambda: writer.score("x"), writer.fork):
        with pytest.raises(UsageError, match="closed"):
            call()
    assert "closed" in repr(writer)


def test_forks_write_on_their_own(writer: Writer) -> None:
    expected = writer.generate(PROMPT, max_new_tokens=6).tokens
    with writer.fork() as other:
        stream = writer.stream(PROMPT, max_new_tokens=6)
        next(stream)
        assert other.generate(PROMPT, max_new_tokens=6).tokens == expected
    assert len(list(stream)) == 5 or stream.result.tokens == expected


def test_reuse_of_what_is_in_memory(torch_session: Any, codec: TextCodec) -> None:
    session = torch_session()
    writer = Writer(session, codec)
    long = "She wrote a letter to the committee of the city. " * 3
    fresh = writer.generate(long, max_new_tokens=4)
    count = fresh.prompt_tokens
    assert fresh.reused_tokens == 0
    # what is reused ends where a new session would end a run of prefill
    again = writer.generate(long + "And", max_new_tokens=4)
    assert again.reused_tokens == count // 16 * 16
    most = writer.generate(long + "And then", max_new_tokens=4, any_reuse=True)
    assert most.reused_tokens > again.reused_tokens
    assert most.tokens == writer.generate(long + "And then", max_new_tokens=4).tokens


def test_chat(writer: Writer, codec: TextCodec) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    result = writer.chat(messages, max_new_tokens=5)
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert writer.prompt_tokens(messages) == codec.encode(text)
    assert result.tokens == writer.generate(text, max_new_tokens=5).tokens
    assert writer.chats
    with pytest.raises(InputError):
        writer.chat("Hello")  # type: ignore[arg-type]


def test_without_a_chat_template(torch_session: Any, codec: TextCodec) -> None:
    writer = Writer(torch_session(), codec)
    assert not writer.chats
    with pytest.raises(UsageError, match="no chat template"):
        writer.chat([{"role": "user", "content": "Hello"}])


def test_defaults_and_options(torch_session: Any, codec: TextCodec) -> None:
    writer = Writer(torch_session(), codec, defaults=Sampling(temperature=2.0, top_k=5))
    drawn = writer.generate(PROMPT, max_new_tokens=20)
    assert drawn.seed is not None
    assert writer.generate(PROMPT, max_new_tokens=20, seed=drawn.seed).tokens == drawn.tokens
    assert writer.generate(PROMPT, max_new_tokens=20, temperature=0.0).seed is None
    for wrong in ({"max_new_tokens": -1}, {"max_new_tokens": 1.5}, {"top_k": -1}, {"stop": [""]}, {"nonsense": 1}):
        with pytest.raises(UsageError):
            writer.generate(PROMPT, **wrong)  # type: ignore[arg-type]


def test_score_is_that_of_the_whole_text_at_once(writer: Writer, codec: TextCodec, torch_graph: Any) -> None:
    import torch

    text = "The committee adjourned; 她在北京。"
    found = writer.score(text)
    tokens = codec.encode(text)
    with torch.no_grad():
        logits = torch_graph({"input_ids": torch.tensor([tokens])})["logits"][0, :-1].double()
    expected = torch.log_softmax(logits, -1)[range(len(tokens) - 1), tokens[1:]].numpy()
    np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-5)
    assert found.nll == pytest.approx(-expected.mean(), abs=1e-5)
    assert found.perplexity == pytest.approx(np.exp(-expected.mean()), rel=1e-4)
    np.testing.assert_array_equal(found.best, logits.argmax(-1).numpy())
    assert found.accuracy == (logits.argmax(-1).numpy() == tokens[1:]).mean()
    assert writer.score(tokens).nll == found.nll
    assert writer.score(tokens[:1]).nll == 0
    for wrong in ("", [1] * 300, [10**6, 1]):
        with pytest.raises(InputError):
            writer.score(wrong)
    assert writer.generate("x", max_new_tokens=3).tokens


def test_the_session_can_be_borrowed(writer: Writer) -> None:
    expected = writer.generate(PROMPT, max_new_tokens=3).tokens
    with writer.borrowed() as session:
        assert session.length == 0
        session.prefill([1, 2, 3])
    assert writer.generate(PROMPT, max_new_tokens=3).tokens == expected
