"""The benchmark of summarisers on a tiny student: real artifacts, real processes, transformers for a peer."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgescribe.converters.read import read_student
from edgescribe.converters.summary_data import encode_sources, end_id, start_ids
from edgescribe.sdk.bundle import read_bundle
from summary_artifacts import bundle_contenders
from summary_contenders import SummaryContender
from summary_run import SummaryEffort, run_summarisers, transcript_peaks
from writer_contenders import LeftOut

pytestmark = pytest.mark.slow

EFFORT = SummaryEffort(rounds=2, times=1, new_tokens=8, memory_starts=1)


def test_every_contender_writes_the_same(summary_files: object, summarizer_bundle: Path, tmp_path: Path) -> None:
    checkpoint: Path = summary_files.student  # type: ignore[attr-defined]
    student = read_student(checkpoint, "summarize")
    weights = checkpoint / "model.safetensors"
    peer = SummaryContender("torch", "peer", "transformers", "fp32",
                            {"kind": "transformers", "path": str(checkpoint)}, [weights])  # fmt: skip
    broken = SummaryContender("broken", "ours", "litert", "w8a8-dynamic",
                              {"kind": "edgescribe", "runtime": "litert", "path": str(weights)}, [weights])  # fmt: skip
    ours = bundle_contenders(read_bundle(summarizer_bundle), tmp_path)
    texts = ["Anna buys three red apples in town.", "the red fox"]
    sources = [[int(token) for token in ids] for ids in encode_sources(student, texts, 32)]
    base = {"threads": 1, "spinning": False, "source_context": 32, "context": 16,
            "start_ids": list(start_ids(student)), "end_ids": [end_id(student)]}  # fmt: skip
    found, left_out = run_summarisers([peer, broken, *ours], sources[0], sources, 10, EFFORT, base)
    assert [one.name for one in left_out] == ["broken"]
    assert all(isinstance(one, LeftOut) for one in left_out)
    assert {one.engine for one in ours} == {"onnxruntime", "openvino", "litert"}
    for one in [peer, *ours]:
        figures = found[one.name]
        assert len(figures.speeds(8)) == 2
        assert min(figures.speeds(8)) > 0
        assert figures.peak_mb > 10
        assert len(figures.summaries) == len(texts)
        assert one.mb > 0
    assert all(found[one.name].summaries == found["torch"].summaries for one in ours)


def test_whole_transcripts_are_summarised_in_a_process_of_their_own(summarizer_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Ada: Anna buys three red apples in town.\n" * 4, encoding="utf-8")
    assert transcript_peaks(summarizer_bundle, "litert", [path], 1)[0] > 10
