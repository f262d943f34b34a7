"""Our side of the benchmark of summarisers: the same student for each runtime, and the artifacts of given bundles."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from edgescribe.converters.block_search import search_blocks
from edgescribe.converters.freeze import freeze
from edgescribe.converters.make_summarizer_bundle import export_encoder_decoder
from edgescribe.converters.student import Student
from edgescribe.converters.summary_data import make_summary_examples
from edgescribe.converters.torch_decoder import TorchDecoder, graph_of
from edgescribe.errors import EdgescribeError
from edgescribe.runtimes.registry import RUNTIMES
from edgescribe.sdk.bundle import Bundle
from edgescribe.sdk.console import note
from edgescribe.sdk.manifest_checks import SUFFIXES
from summary_contenders import SummaryContender
from summary_students import SHIPPED, BenchmarkStudent
from writer_contenders import LeftOut, brief, takes_part

PRECISIONS = ("w8a8-dynamic", "w4a8-dynamic")
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "ai-edge-litert")
CALIBRATION_TEXTS = 64
CONTEXT = 128
CHECKOUT = Path(__file__).parents[1]


def plain_artifacts(
    student: Student,
    given: BenchmarkStudent,
    folder: Path,
    source_context: int,
    only: Sequence[str] | None = None,
) -> list[SummaryContender | LeftOut]:
    """The student as quantised after training, in both precisions, for each runtime whose exporter works.

    Artifacts are kept in ``folder`` between runs. The int4 grid of trained weights is searched on training texts.
    """
    kept = folder / "summarisers" / f"{given.name}-{_key_of(student, source_context)}"
    found: list[SummaryContender | LeftOut] = []
    for precision in PRECISIONS:
        wanted = [runtime for runtime in RUNTIMES if takes_part(name_of(precision, runtime), only)]
        missing = [runtime for runtime in wanted if not (kept / runtime / precision).is_dir()]
        weights = None
        if missing:
            graph = graph_of(student, precision)
            if given.trained and precision == "w4a8-dynamic" and isinstance(graph, TorchDecoder):
                note("searching the int4 grid (once)")
                search_blocks(graph, make_summary_examples(student, *_calibration()))
            weights = freeze(graph)
            del graph
        for runtime in wanted:
            made = kept / runtime / precision
            if weights is not None and runtime in missing:
                note(f"exporting {given.name} to {runtime}, {precision} (once)")
                made.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
                        draft = Path(scratch, "artifact")
                        draft.mkdir()
                        path = draft / (precision + SUFFIXES[runtime][0])
                        export_encoder_decoder(student, runtime, weights, path, source_context, CONTEXT)
                        shutil.move(draft, made)
                except (EdgescribeError, ImportError) as error:
                    found.append(LeftOut(name_of(precision, runtime), brief(error)))
                    continue
            path = made / (precision + SUFFIXES[runtime][0])
            found.append(_contender(path, sorted(made.iterdir()), runtime, precision, folder, "plain"))
    return found


def _calibration() -> tuple[list[str], list[str]]:
    with gzip.open(SHIPPED.parent / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(CALIBRATION_TEXTS), file, strict=False)]
    return [row["text"] for row in rows], [row["summary"] for row in rows]


def bundle_contenders(bundle: Bundle, folder: Path) -> list[SummaryContender]:
    """A line for each artifact of a bundle of a pruned student."""
    return [
        _contender(
            (bundle.folder / artifact.files[0].path).resolve(),
            [bundle.folder / entry.path for entry in artifact.files],
            artifact.runtime,
            artifact.precision,
            folder,
            "pruned",
        )
        for artifact in bundle.artifacts(None, None)
    ]


def _contender(
    path: Path, files: Sequence[Path], runtime: str, precision: str, folder: Path, kind: Literal["plain", "pruned"]
) -> SummaryContender:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    process = {"kind": "edgescribe", "path": str(path), "runtime": runtime,
               "cache": str(folder / "cache" / f"{runtime}-{digest}")}  # fmt: skip
    return SummaryContender(name_of(precision, runtime, kind), "ours", runtime, precision, process, files, kind)


def name_of(precision: str, runtime: str, kind: str = "plain") -> str:
    """What the table calls it."""
    return f"edgescribe {precision}, {runtime}" if kind == "plain" else f"edgescribe {kind} {precision}, {runtime}"


def _key_of(student: Student, source_context: int) -> str:
    """A name for all that goes into the artifacts."""
    digest = hashlib.sha256(f"{student.sha256} {source_context} {CONTEXT}".encode())
    for path in sorted((CHECKOUT / "converters").rglob("*.py")):
        digest.update(path.read_bytes())
    digest.update(" ".join(version(name) for name in PACKAGES).encode())
    return digest.hexdigest()[:16]
