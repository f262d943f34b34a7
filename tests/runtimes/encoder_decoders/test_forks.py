"""Forks of encoder-decoder sessions: they share a source, part, take from one another, and run in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from edgescribe.errors import EngineError, InputError

pytestmark = pytest.mark.slow  # three engines, each opened often

Draw = Callable[..., np.ndarray]

VOCABULARY = 97


def test_forks_share_the_source_and_copy_the_target(artifact: Any, tokens_of: Draw) -> None:
    session = artifact.open()
    source, other_source, tokens = tokens_of(40), tokens_of(150, 7), tokens_of(100, 3)
    session.read(source)
    session.prefill(tokens[:5])
    fork = session.fork()
    assert (fork.source_length, fork.length) == (40, 5)
    expected = session.verify(tokens[5:12])
    np.testing.assert_array_equal(fork.verify(tokens[5:12]), expected)
    following = session.step(7)
    # What the one writes or reads is not the other's.
    session.read(other_source)
    artifact.assert_near(session.prefill(tokens), artifact.logits(other_source, tokens)[-1])
    np.testing.assert_array_equal(fork.step(7), following)
    fork.rewind(5)
    np.testing.assert_array_equal(fork.verify(tokens[5:12]), expected)
    second = fork.fork()
    fork.close()
    second.rewind(5)
    np.testing.assert_array_equal(second.verify(tokens[5:12]), expected)
    np.testing.assert_array_equal(second.step(7), following)
    session.rewind(0)
    artifact.assert_near(session.prefill(tokens[:12]), artifact.logits(other_source, tokens[:12])[-1])
    session.close()
    second.rewind(5)
    np.testing.assert_array_equal(second.verify(tokens[5:12]), expected)
    second.rewind(0)
    artifact.assert_near(second.prefill(tokens), artifact.logits(source, tokens)[-1])
    second.close()


def test_a_session_takes_what_a_fork_has(exact: Any, tokens_of: Draw) -> None:
    session = exact.open()
    session.read(tokens_of(30))
    session.prefill([0, 3])
    one, two = session.fork(), session.fork()
    expected = [one.step(5), two.step(6)]
    # Beams that change places, by way of a third.
    session.take(one)
    one.take(two)
    two.take(session)
    assert (one.length, two.length, session.source_length) == (3, 3, 30)
    for beam, token, first in ((two, 5, expected[0]), (one, 6, expected[1])):
        following = beam.step(8)
        beam.rewind(2)
        np.testing.assert_array_equal(beam.step(token), first)
        np.testing.assert_array_equal(beam.step(8), following)
    # A rewound session gives what it has left, an empty one nothing, and another source comes along.
    two.rewind(1)
    one.take(two)
    assert one.length == 1
    np.testing.assert_array_equal(one.step(3), two.step(3))
    session.read(tokens_of(9, 2))
    one.take(session)
    assert (one.source_length, one.length) == (9, 0)
    np.testing.assert_array_equal(one.step(0), session.step(0))
    one.take(one)
    assert one.length == 1
    two.close()
    with pytest.raises(EngineError, match="closed"):
        one.take(two)
    stranger = exact.open()
    stranger.read([1, 2])
    with pytest.raises(InputError, match="forks"):
        one.take(stranger)
    assert (one.source_length, one.length) == (9, 1)
    stranger.close()
    with pytest.raises(EngineError, match="closed"):
        one.take(stranger)
    for each in (session, one):
        each.close()


def test_beams_take_turns(exact: Any, tokens_of: Draw) -> None:
    """Four hypotheses that part, end and take over from one another, as each would alone."""
    session = exact.open()
    session.read(tokens_of(30, 4))
    beams = [session, *(session.fork() for _ in range(3))]
    texts: list[list[int]] = [[] for _ in beams]
    drawn = np.random.default_rng(0)
    for _ in range(20):
        for beam, text in zip(beams, texts, strict=True):
            text.append(int(drawn.integers(VOCABULARY)))
            beam.step(text[-1])
        taker, giver = drawn.integers(0, 4, 2)
        beams[taker].take(beams[giver])
        texts[taker] = list(texts[giver])
    last = [beam.step(5) for beam in beams]
    for beam in beams[1:]:
        beam.close()
    for text, expected in zip(texts, last, strict=True):
        session.rewind(0)
        session.prefill(text)
        exact.assert_same(session.step(5), expected)
    session.close()


def run_in_threads(*work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_forks_step_in_threads_of_their_own(exact: Any, tokens_of: Draw) -> None:
    session = exact.open()
    session.read(tokens_of(20))
    results: dict[int, np.ndarray] = {}

    def write(number: int, fork: Any) -> None:
        if number % 2:
            fork.read(tokens_of(40 * number, number))
        results[number] = np.stack([fork.step(number + step) for step in range(12)])
        fork.close()

    forks = [session.fork() for _ in range(4)]
    run_in_threads(*(lambda number=number, fork=fork: write(number, fork) for number, fork in enumerate(forks)))
    assert len(results) == 4
    for number in range(4):
        session.read(tokens_of(40 * number, number) if number % 2 else tokens_of(20))
        alone = np.stack([session.step(number + step) for step in range(12)])
        exact.assert_same(results[number], alone)
    session.close()


def test_forks_read_in_threads_of_their_own(exact: Any, tokens_of: Draw) -> None:
    session = exact.open()
    session.read(tokens_of(30))
    tokens = tokens_of(20, 1)
    expected = session.prefill(tokens)
    found: list[np.ndarray] = []

    def write(own: int, fork: Any) -> None:
        for _ in range(3):
            fork.read(tokens_of(30 + own, own))
            fork.prefill(tokens)
            fork.read(tokens_of(30))
            found.append(fork.prefill(tokens))
        fork.close()

    forks = [session.fork() for _ in range(3)]
    run_in_threads(*(lambda own=own, fork=fork: write(own, fork) for own, fork in enumerate(forks)))
    assert len(found) == 9
    for logits in found:
        exact.assert_same(logits, expected)
    session.close()
