"""What every runtime's encoder-decoder sessions answer: sources one after the other, and texts by any road."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from edgescribe.errors import EngineError, InputError
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderSession
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Draw = Callable[..., np.ndarray]

VOCABULARY, SOURCE, TARGET = 97, 200, 150


def test_sources_one_after_the_other_are_answered_as_torch_does(artifact: Any, tokens_of: Draw) -> None:
    session = artifact.open(threads=2)
    assert isinstance(session, EncoderDecoderSession)
    verified = min(9, session.most_verified)
    for seed, count in enumerate((70, 5, SOURCE, 1, 33, 64, 129)):
        source, target = tokens_of(count, seed), tokens_of(TARGET, seed + 9)
        expected = artifact.logits(source, target)
        session.read(source)
        assert (session.source_length, session.length) == (count, 0)
        artifact.assert_near(session.prefill(target[:60]), expected[59])
        artifact.assert_near(session.step(int(target[60])), expected[60])
        artifact.assert_near(session.verify(target[61 : 61 + verified]), expected[61 : 61 + verified])
        session.prefill(tokens_of(10, seed=5))
        session.rewind(65)
        artifact.assert_near(session.prefill(target[65:]), expected[-1])
        with pytest.raises(InputError, match="do not fit"):
            session.step(1)
        session.rewind(0)
        artifact.assert_near(session.verify(target[:3]), expected[:3])
    session.close()
    session.close()
    for call in (lambda: session.step(1), lambda: session.read([1]), session.fork, session.save_cache):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_nothing_is_written_before_a_source_was_read(exact: Any) -> None:
    session = exact.open()
    assert session.source_length == session.length == 0
    for call in (session.prefill, session.verify):
        with pytest.raises(InputError, match="source"):
            call([1])
    with pytest.raises(InputError, match="source"):
        session.step(1)
    session.rewind(0)
    fork = session.fork()
    assert fork.source_length == 0
    with pytest.raises(InputError, match="source"):
        fork.step(1)
    fork.read([3, 4])
    session.read([3, 4])
    written = fork.step(0)
    assert written.shape == (VOCABULARY,)
    np.testing.assert_array_equal(written, session.step(0))
    session.close()
    fork.read([3, 4])
    np.testing.assert_array_equal(fork.step(0), written)
    fork.close()


def test_sources_that_cannot_be_read_change_nothing(session: Any, tokens_of: Draw) -> None:
    session.read([4, 5, 6])
    expected = session.step(0)
    session.rewind(0)
    session.prefill([0, 1])
    for wrong, message in (
        ([], "no tokens"),
        ([VOCABULARY], f"no token {VOCABULARY}"),
        ([-1], "no token -1"),
        (tokens_of(SOURCE + 1), "at once"),
    ):
        with pytest.raises(InputError, match=message):
            session.read(wrong)
    assert (session.source_length, session.length) == (3, 2)
    session.rewind(0)
    np.testing.assert_array_equal(session.step(0), expected)


def test_logits_belong_to_the_caller(session: Any) -> None:
    first = session.prefill([1, 2, 3])
    kept = first.copy()
    several = session.verify([5, 6])
    copied = several.copy()
    session.step(4)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(several, copied)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tokens_alone_get_the_bits_that_they_get_among_others(artifact: Any, threads: int, tokens_of: Draw) -> None:
    session = artifact.open(threads=threads)
    most = min(16, session.most_verified)
    session.read(tokens_of(SOURCE))
    tokens = tokens_of(TARGET, seed=4)
    steps = np.stack([session.step(int(token)) for token in tokens])
    equal = []
    for start, count in ((TARGET - 1, 1), (TARGET - most, most), (31, 3), (1, 2), (0, most), (0, 1)):
        session.rewind(start)
        equal.append(np.array_equal(session.verify(tokens[start : start + count]), steps[start : start + count]))
    alike = session.verifies_alike
    assert all(equal) or not alike
    known = artifact.engine.alike(artifact.precision, threads)
    assert known is None or alike == known
    assert (session.source_length, session.length) == (SOURCE, 1)  # the question leaves source and target alone
    session.close()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_road_to_a_text_gives_its_logits(int8: Any, session: Any, tokens_of: Draw, data: st.DataObject) -> None:
    """Reads, prefills, steps, verifications, rewinds, takes and forks in any order; the text has torch's logits then.

    Where the engine's logits hang on the text alone, they are bit for bit what a session gives that did nothing else.
    """
    source, text = tokens_of(5), [0]
    session.read(source)
    session.step(0)
    fork = session.fork()
    now, ended = session, []
    kept = (source, list(text))
    actions = st.sampled_from(["read", "prefill", "step", "verify", "rewind", "take", "give", "fork"])
    for number in range(data.draw(st.integers(1, 10))):
        action = data.draw(actions)
        if action == "read":
            source, text = tokens_of(data.draw(st.integers(1, SOURCE)), number), []
            now.read(source)
        elif action == "rewind":
            length = data.draw(st.integers(0, len(text)))
            now.rewind(length)
            del text[length:]
        elif action == "take":
            now.take(fork)
            source, text = kept[0], list(kept[1])
        elif action == "give":
            fork.take(now)
            kept = (source, list(text))
        elif action == "fork":
            ended.append(now)
            now = now.fork()
        else:
            most = {"prefill": 20, "step": 1, "verify": min(16, now.most_verified)}[action]
            more = data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=most))
            if len(text) + len(more) >= TARGET:
                continue
            text += more
            logits = now.step(more[0]) if action == "step" else getattr(now, action)(more)
            assert logits.shape[-1] == VOCABULARY
        assert (now.source_length, now.length) == (len(source), len(text))
    last = data.draw(st.integers(0, VOCABULARY - 1))
    got = now.step(last)
    np.testing.assert_allclose(got, int8.logits(source, [*text, last])[-1], atol=2 * int8.tolerance, rtol=0)
    if int8.engine.bitwise:
        fork.read(source)
        np.testing.assert_array_equal(got, fork.prefill([*text, last]))
    for each in (fork, now, *ended):
        if each is not session:
            each.close()
