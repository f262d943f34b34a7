"""Prompt lookup: what it guesses stands in the text, and a text written with it is the text written without."""

from __future__ import annotations

import random
from typing import Any

import pytest
from edgescribe.sdk.prompt_lookup import PromptLookup
from edgescribe.sdk.text_codec import TextCodec
from edgescribe.sdk.writer import Writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TOKENS = st.lists(st.integers(0, 4), max_size=40)


@given(prompt=TOKENS, text=TOKENS, most=st.integers(1, 15))
def test_guesses_follow_the_same_tokens_elsewhere(prompt: list[int], text: list[int], most: int) -> None:
    lookup = PromptLookup(prompt, most)
    seen = list(prompt)
    place = 0
    while place < len(text):
        guess = lookup.propose(len(text) - place - 1)
        assert len(guess) <= min(most, len(text) - place - 1)
        if guess:
            ends = [seen[at : at + len(guess)] for at in range(len(seen))]
            assert guess in ends
        accepted = 0
        while accepted < len(guess) and guess[accepted] == text[place + accepted]:
            accepted += 1
        new = text[place : place + accepted + 1]
        lookup.written(new, len(guess), accepted)
        seen += new
        place += len(new)
    found = lookup.statistics
    assert found.accepted <= found.proposed
    assert found.accepted + found.verifies + found.steps == len(text)


def written_with(lookup: PromptLookup, text: list[int]) -> int:
    """Runs that it takes to write a text."""
    place = runs = 0
    while place < len(text):
        guess = lookup.propose(len(text) - place - 1)
        right = next((i for i, token in enumerate(guess) if token != text[place + i]), len(guess))
        lookup.written(text[place : place + right + 1], len(guess), right)
        place += right + 1
        runs += 1
    return runs


def test_copied_text_is_guessed() -> None:
    copied = PromptLookup(range(100, 200), 15)
    assert written_with(copied, list(range(100, 200))) < 20
    assert copied.statistics.accepted == copied.statistics.proposed
    changed = PromptLookup(range(100, 200), 15)
    # every ninth token is another one, and every thirteenth is left out
    text = [token if token % 9 else 500 + token for token in range(100, 200) if token % 13]
    assert written_with(changed, text) < 55


def test_guessing_costs_little_where_it_does_not_pay() -> None:
    draw = random.Random(1)
    # every three tokens were there before, and what follows them is anyone's guess
    strange = PromptLookup([draw.randrange(6) for _ in range(600)], 15)
    runs = written_with(strange, [draw.randrange(6) for _ in range(600)])
    assert runs + 0.18 * strange.statistics.proposed < 1.05 * 600


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    words=st.lists(st.sampled_from(["the ", "committee ", "met ", "Monday", "中", "x"]), min_size=1, max_size=12),
    temperature=st.sampled_from([0.0, 0.0, 0.4, 1.0]),
    penalty=st.sampled_from([1.0, 1.3]),
    most=st.integers(1, 20),
)
def test_text_is_the_same_with_and_without(
    writer: Writer, words: list[str], temperature: float, penalty: float, most: int
) -> None:
    options: Any = {
        "max_new_tokens": most, "temperature": temperature, "repetition_penalty": penalty, "seed": 7, "stop": ["ee"],
    }  # fmt: skip
    plain = writer.generate("".join(words), lookup=False, **options)
    looked = writer.generate("".join(words), lookup=True, **options)
    assert looked.tokens == plain.tokens
    assert (looked.text, looked.finish_reason, looked.stop) == (plain.text, plain.finish_reason, plain.stop)
    assert plain.lookup is None
    assert looked.lookup is not None


def test_a_text_that_repeats_itself_takes_fewer_runs(torch_session: Any, codec: TextCodec) -> None:
    session = torch_session()
    writer = Writer(session, codec)
    plain = writer.generate("The", max_new_tokens=120, lookup=False)
    steps = len(session.runs)
    session.runs.clear()
    looked = writer.generate("The", max_new_tokens=120)  # on by itself: this session verifies alike
    assert looked.tokens == plain.tokens
    found = looked.lookup
    assert found is not None
    if found.accepted == 0:
        pytest.fail("this model was to repeat itself; choose another seed for its weights")
    assert len(session.runs) < steps
    assert found.accepted_per_verify == found.accepted / found.verifies
