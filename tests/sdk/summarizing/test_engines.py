"""Summarisers on every engine: what transformers writes, beams and lookup included, and forks that stay apart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgescribe import load_summarizer
from edgescribe.errors import InputError, OverBudgetError, UsageError
from edgescribe.runtimes.registry import RUNTIMES

TEXTS = (
    "The committee met on Monday; the committee adjourned on Tuesday until March.",
    "A small daemon routes packets",
    "Anna will send the budget to Peter by Friday",
)


def of_transformers(model: Any, ids: list[int], **options: Any) -> list[int]:
    import torch

    found = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones((1, len(ids)), dtype=torch.long), do_sample=False, **options
    )[0].tolist()
    return [int(token) for token in found[1 : -1 if found[-1] == 1 else None]]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_summaries_are_those_of_transformers(
    summarizer_folder: Path, t5_of: Callable[..., Any], runtime: str
) -> None:
    """In float32, where a likelier token is never likelier by rounding alone with these weights."""
    model = t5_of(0)
    with load_summarizer(summarizer_folder, runtime=runtime, threads=1) as summarizer:
        assert summarizer.info.runtime == summarizer.effective.runtime == runtime
        assert (summarizer.source_context, summarizer.context, summarizer.info.max_tokens) == (96, 40, 96)
        for text in TEXTS:
            ids = summarizer.source_tokens(text)
            for options in (
                {"max_new_tokens": 20},
                {"max_new_tokens": 20, "num_beams": 4, "no_repeat_ngram_size": 2, "length_penalty": 2.0},
                {"max_new_tokens": 12, "num_beams": 3, "early_stopping": True, "min_new_tokens": 5},
            ):
                wanted = of_transformers(model, ids, **options)
                assert list(summarizer.summarize(text, **options).tokens) == wanted  # type: ignore[call-overload]
            drawn = summarizer.summarize(text, temperature=1.0, seed=3, max_new_tokens=10)
            assert summarizer.summarize(text, temperature=1.0, seed=3, max_new_tokens=10).tokens == drawn.tokens


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_lookup_writes_the_same(summarizer_folder: Path, runtime: str) -> None:
    with load_summarizer(summarizer_folder, runtime=runtime, threads=1) as summarizer:
        for text in TEXTS:
            plain = summarizer.summarize(text, max_new_tokens=38, lookup=False)
            assert summarizer.summarize(text, max_new_tokens=38).tokens == plain.tokens
            assert summarizer.summarize(text, max_new_tokens=38, lookup=True).tokens == plain.tokens


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_forks_and_streams_side_by_side(summarizer_folder: Path, runtime: str) -> None:
    with load_summarizer(summarizer_folder, runtime=runtime, threads=1) as summarizer, summarizer.fork() as other:
        alone = [summarizer.summarize(text, max_new_tokens=15, num_beams=2).text for text in TEXTS]
        streams = [each.stream(text, max_new_tokens=15) for each, text in zip((summarizer, other), TEXTS, strict=False)]
        plain = [summarizer.summarize(text, max_new_tokens=15).text for text in TEXTS]
        pieces: list[str] = ["", ""]
        for _ in range(20):
            for number, stream in enumerate(streams):
                pieces[number] += next(stream, "")
        assert pieces == plain[:2]
        found: dict[int, str] = {}

        def work(number: int) -> None:
            which = (summarizer, other)[number % 2]
            found[number] = which.summarize(TEXTS[number], max_new_tokens=15, num_beams=2).text

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[number] for number in range(3)] == alone


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_smaller_contexts_and_memory(summarizer_folder: Path, runtime: str) -> None:
    with load_summarizer(summarizer_folder, runtime=runtime, source_context=50, context=4, threads=1) as summarizer:
        assert (summarizer.source_context, summarizer.context) == (50, 4)
        found = summarizer.summarize(TEXTS[1], min_new_tokens=4, no_repeat_ngram_size=2)
        assert (len(found.tokens), found.finish_reason) == (4, "length")
        with pytest.raises(InputError, match="50 at once"):
            summarizer.summarize(" ".join(TEXTS))
    with pytest.raises(UsageError, match=r"source context of 4\d tokens"):
        load_summarizer(summarizer_folder, runtime=runtime, source_context=20)
    with pytest.raises(UsageError, match="97"):
        load_summarizer(summarizer_folder, runtime=runtime, source_context=97)
    with pytest.raises(OverBudgetError, match="MiB"):
        load_summarizer(summarizer_folder, runtime=runtime, memory_mib=1)
