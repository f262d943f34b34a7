"""A bundle of a summariser, as its maker leaves it: what stands in it, and that every engine summarises with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import edgescribe
import pytest

RUNTIMES = ("onnxruntime", "openvino", "litert")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_summarises_with_it(summarizer_bundle: Path, summary_files: Any, runtime: str) -> None:
    rows = [json.loads(line) for line in summary_files.evaluation.read_text(encoding="utf-8").splitlines()][:20]
    with edgescribe.load_summarizer(summarizer_bundle, runtime=runtime) as summarizer:
        written = [summarizer.summarize(row["text"]).text for row in rows]
    assert sum(text == row["summary"] for text, row in zip(written, rows, strict=True)) >= 18
