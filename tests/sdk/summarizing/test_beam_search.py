"""Beam search writes what ``generate(num_beams=…)`` of transformers writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from edgescribe.sdk.summarizer import Summarizer
from edgescribe.sdk.text_codec import TextCodec

TEXTS = (
    "The committee met on Monday; the committee adjourned on Tuesday until March.",
    "A small daemon routes packets",
    "Anna will send the budget to Peter by Friday, and Peter will ask the board about 4,500 euros.",
)


def expected(model: Any, ids: list[int], **options: Any) -> tuple[list[int], float]:
    """Tokens that transformers generates, without what starts and ends them, and their score."""
    import torch

    with torch.no_grad():
        found = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones((1, len(ids)), dtype=torch.long), do_sample=False,
            return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
    return found.sequences[0].tolist(), float(found.sequences_scores[0])


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3},
        {"num_beams": 3, "length_penalty": 0.0, "early_stopping": True},
        {"num_beams": 2, "length_penalty": -1.0, "no_repeat_ngram_size": 2, "early_stopping": True},
        {"num_beams": 5, "length_penalty": 1.2, "early_stopping": "never", "min_new_tokens": 4},
        {"num_beams": 4, "no_repeat_ngram_size": 1, "min_new_tokens": 6},
    ],
    ids=str,
)
def test_beams_of_t5_are_those_of_transformers(
    session_of: Callable[..., Any], t5_of: Callable[[int], Any], codec: TextCodec, seed: int, options: dict[str, Any]
) -> None:
    model = t5_of(seed)
    with Summarizer(session_of(seed), codec, start_tokens=[0], end_tokens=[1]) as summarizer:
        for text in TEXTS:
            for most in (1, 14):
                if options.get("min_new_tokens", 0) > most:
                    continue
                found = summarizer.summarize(text, max_new_tokens=most, **options)
                wanted, score = expected(model, summarizer.source_tokens(text), max_new_tokens=most, **options)
                ended = wanted[-1] == 1
                assert list(found.tokens) == wanted[1 : -1 if ended else None]
                assert found.finish_reason == ("stop" if ended else "length")
                assert found.score == pytest.approx(score, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_beams_of_bart_count_the_forced_token(
    session_of: Callable[..., Any], bart_of: Callable[[int], Any], codec: TextCodec, seed: int
) -> None:
    model = bart_of(seed)
    options: dict[str, Any] = {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "early_stopping": True}
    with Summarizer(session_of(model=model), codec, start_tokens=[1, 3], end_tokens=[1]) as summarizer:
        for text in TEXTS:
            found = summarizer.summarize(text, max_new_tokens=15, **options)
            wanted, score = expected(model, summarizer.source_tokens(text), max_new_tokens=16, **options)
            ended = wanted[-1] == 1
            assert list(found.tokens) == wanted[2 : -1 if ended else None]
            assert found.score == pytest.approx(score, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("seed", [1, 2])
def test_greedy_is_that_of_transformers(
    session_of: Callable[..., Any], t5_of: Callable[[int], Any], codec: TextCodec, seed: int
) -> None:
    import torch

    with Summarizer(session_of(seed), codec, start_tokens=[0], end_tokens=[1]) as summarizer:
        for size, least in ((0, 0), (2, 0), (1, 12)):
            for text in TEXTS:
                ids = torch.tensor([summarizer.source_tokens(text)])
                wanted = t5_of(seed).generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20,
                    no_repeat_ngram_size=size, min_new_tokens=least,
                )[0].tolist()  # fmt: skip
                for lookup in (False, True):
                    found = summarizer.summarize(
                        text, max_new_tokens=20, no_repeat_ngram_size=size, min_new_tokens=least, lookup=lookup
                    )
                    assert list(found.tokens) == wanted[1 : -1 if wanted[-1] == 1 else None]


def test_beams_use_each_others_memory_again(session_of: Callable[..., Any], codec: TextCodec) -> None:
    session = session_of()
    forks: list[Any] = []
    forked = session._forked

    def counted() -> Any:
        forks.append(forked())
        return forks[-1]

    session._forked = counted
    summarizer = Summarizer(session, codec, start_tokens=[0], end_tokens=[1])
    options: Any = {"num_beams": 4, "max_new_tokens": 12, "min_new_tokens": 4, "no_repeat_ngram_size": 2}
    first = summarizer.summarize(TEXTS[0], **options)
    assert len(forks) == 3
    other = summarizer.summarize(TEXTS[1], **options)
    assert len(forks) == 3
    assert summarizer.summarize(TEXTS[0], **options).tokens == first.tokens != other.tokens
    assert session.length == 0
    summarizer.close()
    assert all(fork._closed for fork in forks)
