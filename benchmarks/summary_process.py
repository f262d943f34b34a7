"""The process of one summariser: opens a student, summarises a first source, then does what stdin asks for.

Started by ``summary_run.py`` with one argument, JSON: ``kind`` (of ``summary_engines.KINDS``, or ``long`` for a bundle
of ours that summarises whole transcripts), ``path``, ``threads``, ``start_ids``, ``end_ids``, ``source`` (tokens) and
what its kind asks for. It runs in the peer's own environment and imports numpy and what its kind needs, so that its
memory and start-up time are those of an app that uses it.

Lines of JSON go out: one when the first token about ``source`` was chosen, then one for each line that comes in:

- ``{"write": 64, "times": 2}``: the first source again, exactly so many tokens; answers ``{"runs": […]}``;
- ``{"summaries": [[ids], …], "most": 48}``: answers ``{"tokens": [[…], …]}``, each until it ends;
- ``{"transcript": path}``: a whole transcript by :meth:`edgescribe.Summarizer.summarize_long`;
- ``{"peak": true}``: answers ``{"peak_rss_mib": …}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

from summary_engines import KINDS, Engine, Written


def main() -> None:
    """Write the first token and then answer one line after the other, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines print to stdout
    spec = json.loads(sys.argv[1])
    if spec.get("packages"):
        sys.path.append(spec["packages"])
    if spec["kind"] == "long":
        summarize_transcripts(spec, answers)
        return
    engine = KINDS[spec["kind"]](spec)
    first = engine.write(spec["source"], 1, True).tokens[0]
    print(json.dumps({"first": first, "answered_ns": time.monotonic_ns(), "engine": engine.engine()}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(engine, spec["source"], json.loads(line))), file=answers)


def answer(engine: Engine, source: list[int], asked: dict[str, Any]) -> dict[str, Any]:
    """What one line asks for."""
    if "summaries" in asked:
        return {"tokens": [engine.write(ids, asked["most"], False).tokens for ids in asked["summaries"]]}
    if "peak" in asked:
        return {"peak_rss_mib": peak_rss_mib()}
    return {"runs": [plain(engine.write(source, asked["write"], True)) for _ in range(asked["times"])]}


def plain(written: Written) -> dict[str, Any]:
    return {"total_ms": written.total_ms, "first_ms": written.first_ms, "tokens": written.tokens}


def summarize_transcripts(spec: dict[str, Any], answers: Any) -> None:
    """Whole transcripts, by the calls that an app makes."""
    import edgescribe

    with edgescribe.load_summarizer(spec["path"], runtime=spec["runtime"], threads=spec["threads"]) as summarizer:
        used = summarizer.effective
        ready = {"first": 0, "answered_ns": time.monotonic_ns(), "engine": f"{used.engine} {used.engine_version}"}
        print(json.dumps(ready), file=answers)
        for line in sys.stdin:
            asked = json.loads(line)
            if "peak" in asked:
                print(json.dumps({"peak_rss_mib": peak_rss_mib()}), file=answers)
                continue
            parts = 0
            begun = time.perf_counter()
            for _ in summarizer.summarize_long(Path(asked["transcript"])):
                parts += 1
            print(json.dumps({"parts": parts, "seconds": time.perf_counter() - begun}), file=answers)


def peak_rss_mib() -> float:
    """Peak resident memory of this process since it was started, as Linux counts it."""
    with Path("/proc/self/status").open() as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise OSError("this system does not tell a process's peak memory")


if __name__ == "__main__":
    main()
