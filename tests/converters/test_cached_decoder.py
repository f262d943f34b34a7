"""Writing in torch with a cache: the tokens that whole runs choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from edgescribe.converters.cached_decoder import CachedDecoder, greedy_continuation
from edgescribe.converters.read import read_student
from edgescribe.converters.torch_decoder import graph_of

FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gpt2")
PROMPT = [5, 90, 17, 230, 41, 7]
TOKENS = 30


@pytest.mark.parametrize("precision", ["fp32", "w8a8-dynamic", "w4a8-dynamic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_no_token(family: str, precision: str, make_writer_checkpoint: Callable[..., Any]) -> None:
    graph = graph_of(read_student(make_writer_checkpoint(family)[0], "generate"), precision).eval()
    # In float64, so that no two tokens are likely alike but for the order of sums.
    graph.double()
    written = CachedDecoder(graph)
    for _ in range(2):
        text, rows = list(PROMPT), [written.write(PROMPT[:2]), written.write(PROMPT[2:])][1:]
        while len(text) < len(PROMPT) + TOKENS:
            text.append(int(rows[-1].argmax()))
            rows.append(written.write(text[-1:]))
        with torch.no_grad():
            whole = graph.run({"input_ids": torch.tensor([text])})["logits"][0, len(PROMPT) - 1 :]
        assert text[len(PROMPT) :] == whole[:-1].argmax(-1).tolist()
        torch.testing.assert_close(torch.stack(rows), whole)
        written.forget()
    ends = graph.student.eos_ids
    chosen = text[len(PROMPT) :]
    kept = next((place for place, token in enumerate(chosen) if token in ends), TOKENS)
    assert greedy_continuation(graph, PROMPT, TOKENS) == chosen[:kept]


def test_a_text_ends_with_the_context(make_writer_checkpoint: Callable[..., Any]) -> None:
    student = read_student(make_writer_checkpoint("gpt2")[0], "generate")
    graph = graph_of(student).eval()
    prompt = [9] * (student.max_tokens - 3)
    assert len(greedy_continuation(graph, prompt, TOKENS)) <= 3
    assert greedy_continuation(graph, [9] * student.max_tokens, TOKENS) == []
