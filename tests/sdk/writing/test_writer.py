"""A writer over a real, tiny model: texts, streams, stopping, several at a time, scores."""

from __future__ import annotations

from typing import Any

from edgescribe.sdk.text_codec import TextCodec
from edgescribe.sdk.writer import Writer

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
