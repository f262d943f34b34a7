"""Summarisers whose engine's waiting threads spin, and those whose threads sleep: the same summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edgescribe import UsageError, load_summarizer
from edgescribe.runtimes import onnxruntime_encoder_decoder


def test_threads_spin_where_it_is_asked_for(summarizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, made = [], onnxruntime_encoder_decoder.engine_options

    def seen(*arguments: Any, **named: Any) -> Any:
        options = made(*arguments, **named)
        entries.append(options.get_session_config_entry("session.intra_op.allow_spinning"))
        return options

    monkeypatch.setattr(onnxruntime_encoder_decoder, "engine_options", seen)
    texts = []
    for spinning in ({}, {"spinning": True}):
        with load_summarizer(summarizer_folder, runtime="onnxruntime", threads=2, **spinning) as summarizer:
            texts.append(summarizer.summarize("The committee met on Monday.", max_new_tokens=8).text)
    half = len(entries) // 2
    assert set(entries[:half]) == {"0"}
    assert set(entries[half:]) == {"1"}
    assert texts[0] == texts[1]
    with pytest.raises(UsageError, match="spinning is 1"):
        load_summarizer(summarizer_folder, spinning=1)  # type: ignore[arg-type]
