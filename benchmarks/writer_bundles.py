"""Our side of the benchmark of writers: the same student in bundles, one for each runtime, and given bundles."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from edgescribe.converters.block_search import search_blocks
from edgescribe.converters.make_writer_bundle import make_writer_bundle
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder
from edgescribe.converters.writing_data import make_writing_examples
from edgescribe.errors import EdgescribeError
from edgescribe.runtimes.registry import RUNTIMES
from edgescribe.sdk.bundle import Bundle, read_bundle
from edgescribe.sdk.console import note
from writer_contenders import Bits, LeftOut, WriterContender, brief, takes_part

PRECISIONS: dict[str, Bits] = {"w8a8-dynamic": 8, "w4a8-dynamic": 4}
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "ai-edge-litert")
CALIBRATION_PIECE = 1024
CHECKOUT = Path(__file__).parents[1]


def plain_bundles(
    student: Student, folder: Path, texts: Sequence[str], context: int, only: Sequence[str] | None = None
) -> list[WriterContender | LeftOut]:
    """The student as quantised after training, in both precisions, for each runtime whose exporter and engine work.

    Args:
        student: the unpruned one.
        folder: where bundles are kept between runs.
        texts: calibration texts, which the int4 grid is searched on.
        context: the most tokens of prompt and text.
        only: parts of names; a runtime none of whose lines holds one is not exported to. None: all.
    """
    kept = folder / "writers" / key_of(student, texts, context)
    found: list[WriterContender | LeftOut] = []
    graphs: dict[str, TorchDecoder] = {}
    for runtime in RUNTIMES:
        if not any(takes_part(name_of(precision, runtime), only) for precision in PRECISIONS):
            continue
        if not (kept / runtime).is_dir():
            if not graphs:
                graphs = quantized(student, texts)
            note(f"exporting to {runtime} (once)")
            kept.mkdir(parents=True, exist_ok=True)
            try:
                make_writer_bundle(student, graphs, (runtime,), kept / runtime, texts=texts, source=student, recipe={},
                                   seed=0, data_sha256={}, name="plain", max_tokens=context)  # fmt: skip
            except (EdgescribeError, ImportError) as error:
                found += [LeftOut(name_of(precision, runtime), brief(error)) for precision in PRECISIONS]
                continue
        found += bundle_contenders(read_bundle(kept / runtime), folder)
    return found


def quantized(student: Student, texts: Sequence[str]) -> dict[str, TorchDecoder]:
    """The student's graphs by precision, the int4 grid searched on the texts."""
    graphs = {}
    for precision in PRECISIONS:
        graphs[precision] = TorchDecoder(student, precision)
    note("searching the int4 grid (once)")
    # In long pieces: each run of the graph rounds all weights anew, however short the text.
    examples = make_writing_examples(student, ["\n\n".join(texts)], max_tokens=CALIBRATION_PIECE)
    search_blocks(graphs["w4a8-dynamic"], examples)
    return graphs


def bundle_contenders(
    bundle: Bundle, folder: Path, kind: Literal["plain", "trained", "pruned"] = "plain"
) -> list[WriterContender]:
    """A line for each artifact of a bundle in int8 or int4."""
    found = []
    for artifact in bundle.artifacts(None, None):
        if artifact.precision not in PRECISIONS:
            continue
        digest = artifact.files[0].sha256[:16]
        process = {
            "kind": "edgescribe",
            "path": str(bundle.folder.resolve()),
            "runtime": artifact.runtime,
            "precision": artifact.precision,
            "cache": str(folder / "cache" / f"{artifact.runtime}-{digest}"),
        }
        files = [bundle.folder / entry.path for entry in artifact.files]
        bits = PRECISIONS[artifact.precision]
        name = name_of(artifact.precision, artifact.runtime, kind)
        found.append(
            WriterContender(name, "ours", artifact.runtime, bits, Path(sys.executable), process, files, kind)
        )
    return found


def name_of(precision: str, runtime: str, kind: str = "plain") -> str:
    """What the table calls it."""
    return f"edgescribe {precision}, {runtime}" if kind == "plain" else f"edgescribe {kind} {precision}, {runtime}"


def key_of(student: Student, texts: Sequence[str], context: int) -> str:
    """A name for all that goes into the bundles."""
    digest = hashlib.sha256("\0".join([student.sha256, str(context), *texts]).encode())
    for path in sorted((CHECKOUT / "converters").rglob("*.py")):
        digest.update(path.read_bytes())
    digest.update(" ".join(version(name) for name in PACKAGES).encode())
    return digest.hexdigest()[:16]
