"""Writers on the real engines: the same promises as on the reference."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.runtimes.registry import open_decoder
from edgescribe.sdk.prefix_cache import PrefixCache
from edgescribe.sdk.text_codec import TextCodec
from edgescribe.sdk.writer import Writer

PROMPT = "The committee met on Monday; the committee adjourned on Tuesday; the committee"


def test_same_seed_same_text_whatever_was_written_before(engine_writer: Writer) -> None:
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5, "top_p": 0.9}):
        first = engine_writer.generate(PROMPT, max_new_tokens=40, lookup=False, **options)  # type: ignore[arg-type]
        assert len(first.tokens) == 40 or first.finish_reason == "stop"
        engine_writer.generate(PROMPT[:20], max_new_tokens=9)
        engine_writer.generate(PROMPT, max_new_tokens=3)
        stream = engine_writer.stream(PROMPT, max_new_tokens=40, lookup=False, **options)  # type: ignore[arg-type]
        assert "".join(stream) == first.text
        assert stream.result.tokens == first.tokens


def test_lookup_is_repeatable_and_where_the_engine_allows_it_equal(engine_writer: Writer) -> None:
    plain = engine_writer.generate(PROMPT, max_new_tokens=80, lookup=False)
    looked = engine_writer.generate(PROMPT, max_new_tokens=80, lookup=True)
    again = engine_writer.generate(PROMPT, max_new_tokens=80, lookup=True)
    assert looked.tokens == again.tokens
    assert looked.lookup is not None
    assert looked.lookup.proposed
    if engine_writer.generate("x", max_new_tokens=1).lookup is not None:  # on by itself: one or several run alike
        assert looked.tokens == plain.tokens


def test_a_lent_session_goes_on_as_if_nothing_had_been(engine_writer: Writer) -> None:
    expected = engine_writer.generate(PROMPT, max_new_tokens=20, lookup=False).text
    pieces = []
    with engine_writer.stream(PROMPT, max_new_tokens=20, lookup=False) as stream:
        for number, piece in enumerate(stream):
            pieces.append(piece)
            if number == 3:
                engine_writer.generate("x" * 30, max_new_tokens=4)
    assert "".join(pieces) == expected


def test_forks_write_at_the_same_time(engine_writer: Writer) -> None:
    expected = engine_writer.generate(PROMPT, max_new_tokens=30).text
    found = []

    def write(writer: Writer) -> None:
        with writer:
            found.append(writer.generate(PROMPT, max_new_tokens=30).text)

    threads = [threading.Thread(target=write, args=(engine_writer.fork(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected, expected]


def test_system_prompt_from_disk_gives_the_same_text(
    engine_artifact: tuple[str, Path], codec: TextCodec, tmp_path: Path
) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    messages = [{"role": "system", "content": "Answer as short as you can."}, {"role": "user", "content": "Why?"}]
    results = []
    for _ in range(2):
        cache = PrefixCache(tmp_path, ["x"])
        session = open_decoder(*engine_artifact)
        with Writer(session, codec, end_tokens=[2], chat_template=template, prefixes=cache) as writer:
            results.append(writer.chat(messages, max_new_tokens=30))
    fresh, kept = results
    assert fresh.reused_tokens == 0
    assert kept.reused_tokens > 10
    assert kept.tokens == fresh.tokens


def test_constrained_text(engine_writer: Writer) -> None:
    pytest.importorskip("llguidance", reason="the extra 'constraints' is not installed")
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    result = engine_writer.generate("x", schema=schema, temperature=1.0, seed=1, max_new_tokens=60)
    assert [type(item) for item in json.loads(result.text)] == [bool, bool]


def test_scores_are_near_the_reference(engine_writer: Writer, writer: Writer, codec: TextCodec) -> None:
    tokens = codec.encode(PROMPT)
    found, reference = engine_writer.score(tokens), writer.score(tokens)
    spread: Any = np.abs(found.log_probabilities - reference.log_probabilities)
    assert found.nll == pytest.approx(reference.nll, rel=0.2)
    assert np.median(spread) < 1.0
