"""Sampling: the filters keep just what their definitions say, and draws follow the probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from edgescribe.errors import UsageError, WrongAnswerError
from edgescribe.sdk.sampling import Sampler, Sampling, nucleus, place_of, top_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

SEEDS = st.integers(0, 2**32)


def logits_of(seed: int, vocabulary: int, ties: bool = False) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).normal(scale=3, size=vocabulary)
    return (np.round(found) if ties else found).astype(np.float32)


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    shifted = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return shifted / shifted.sum()


@given(seed=SEEDS, vocabulary=st.integers(1, 3000), k=st.integers(1, 400), ties=st.booleans())
def test_top_tokens_are_those_of_a_full_sort(seed: int, vocabulary: int, k: int, ties: bool) -> None:
    logits = logits_of(seed, vocabulary, ties)
    expected = np.argsort(-logits, kind="stable")[:k]
    np.testing.assert_array_equal(top_tokens(logits, k), expected)


@given(seed=SEEDS, vocabulary=st.integers(1, 5000), top_p=st.floats(0.01, 0.999))
def test_nucleus_is_the_smallest_set_that_reaches_top_p(seed: int, vocabulary: int, top_p: float) -> None:
    weights = np.exp(logits_of(seed, vocabulary))
    kept = nucleus(weights, top_p)
    share = np.sort(weights.astype(np.float64))[::-1] / weights.sum(dtype=np.float64)
    sums = np.cumsum(share)
    assert sums[len(kept) - 1] >= top_p - 1e-9
    assert len(kept) == 1 or sums[len(kept) - 2] <= top_p + 1e-9
    assert set(weights[kept]) == set(np.sort(weights)[::-1][: len(kept)])


@given(
    seed=SEEDS, vocabulary=st.integers(1, 2000), temperature=st.floats(0.05, 5), top_k=st.integers(0, 50),
    top_p=st.floats(0.05, 1), min_p=st.floats(0, 1),
)  # fmt: skip
def test_tokens_drawn_are_within_every_bound(
    seed: int, vocabulary: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = logits_of(seed, vocabulary)
    sampler = Sampler(Sampling(temperature, top_k, top_p, min_p, seed=seed), vocabulary)
    share = probabilities(logits, temperature)
    order = np.argsort(-logits, kind="stable")
    for _ in range(5):
        token = sampler.choose(logits.copy())
        rank = int(np.flatnonzero(order == token)[0])
        assert top_k == 0 or rank < top_k
        among = share[order[:top_k]] if top_k else share[order]
        before = among[:rank].sum() / among.sum()
        assert rank == 0 or before < top_p + 1e-5
        assert share[token] >= min_p * share.max() * (1 - 1e-5)


@given(seed=SEEDS, count=st.integers(1, 3000), number=st.floats(0, 1, exclude_max=True), zeros=st.floats(0, 0.99))
def test_place_is_where_the_running_sum_passes_the_number(seed: int, count: int, number: float, zeros: float) -> None:
    draw = np.random.default_rng(seed)
    weights = (draw.random(count) * (draw.random(count) >= zeros)).astype(np.float32)
    weights[draw.integers(count)] = 0.5
    place = place_of(weights, number)
    sums = np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64)
    assert weights[place] > 0
    assert sums[place] >= number - 1e-9
    assert place == 0 or sums[place - 1] <= number + 1e-9


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=1), 4)
    drawn = np.bincount([sampler.choose(logits.copy()) for _ in range(20000)], minlength=4) / 20000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.15, 0.05], atol=0.015)
    flat = Sampler(Sampling(temperature=2.0, top_p=0.75, seed=1), 4)
    root = np.sqrt([0.5, 0.3, 0.15])
    drawn = np.bincount([flat.choose(logits.copy()) for _ in range(20000)], minlength=4) / 20000
    np.testing.assert_allclose(drawn[:3], root / root.sum(), atol=0.015)
    assert drawn[3] == 0


def test_same_seed_same_tokens_and_seeds_are_told() -> None:
    def drawn(sampler: Sampler) -> list[int]:
        return [sampler.choose(logits_of(number, 500)) for number in range(30)]

    first = Sampler(Sampling(temperature=1.0), 500)
    assert first.seed is not None
    again = Sampler(Sampling(temperature=1.0, seed=first.seed), 500)
    other = Sampler(Sampling(temperature=1.0), 500)
    given_tokens = drawn(first)
    assert drawn(again) == given_tokens
    assert drawn(other) != given_tokens
    assert Sampler(Sampling(), 500).seed is None


@settings(max_examples=50)
@given(seed=SEEDS, tiny=st.floats(0, 1e-6))
def test_tiny_temperatures_are_greedy(seed: int, tiny: float) -> None:
    logits = logits_of(seed, 300)
    assert Sampler(Sampling(temperature=tiny, seed=1), 300).choose(logits.copy()) == int(logits.argmax())


@given(seed=SEEDS, penalty=st.floats(0.5, 3))
def test_repetition_penalty(seed: int, penalty: float) -> None:
    logits = logits_of(seed, 60)
    prompt = [3, 3, 5, 59]
    sampler = Sampler(Sampling(repetition_penalty=penalty), 60, prompt)
    written = set(prompt)
    for _ in range(6):
        expected = logits.copy()
        for token in written:
            expected[token] = expected[token] / penalty if expected[token] > 0 else expected[token] * penalty
        token = sampler.choose(logits.copy())
        assert expected[token] >= expected.max() - 1e-5
        written.add(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_told(temperature: float, wrong: float) -> None:
    logits = np.zeros(10, np.float32)
    logits[4] = wrong
    with pytest.raises(WrongAnswerError, match="token 4"):
        Sampler(Sampling(temperature=temperature, seed=0), 10).choose(logits)
    with pytest.raises(WrongAnswerError):
        Sampler(Sampling(temperature=temperature, seed=0), 10).choose(np.full(10, -np.inf, np.float32))


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 5, "top_p": 0.5}])
def test_tokens_at_minus_infinity_are_never_drawn(options: dict[str, float]) -> None:
    logits = np.full(1500, -np.inf, np.float32)
    logits[[3, 700]] = 0.0, 1.0
    sampler = Sampler(Sampling(temperature=50.0, seed=3, **options), 1500)  # type: ignore[arg-type]
    assert {sampler.choose(logits.copy()) for _ in range(40)} <= {3, 700}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"}, {"temperature": True},
        {"top_k": -1}, {"top_k": 1.5}, {"top_p": 0}, {"top_p": 1.01}, {"min_p": -0.1}, {"min_p": 2},
        {"repetition_penalty": 0}, {"seed": -1}, {"seed": "x"},
    ],
)  # fmt: skip
def test_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
