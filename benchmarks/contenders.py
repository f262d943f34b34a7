"""Who takes part: the unpruned student on its engines as peers, and the bundle's artifacts on theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgescribe.sdk.bundle import Bundle

Group = Literal["torch fp32", "ONNX Runtime fp32", "ONNX Runtime quantize_dynamic", "OpenVINO + NNCF", "edgescribe"]
"""What bars are set against: of the peers in one group, the fastest counts."""


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Attributes:
        name: what the table calls it.
        group: which bar it is for.
        process: what ``contender_process.py`` is started with.
        files: the model's files, whose sizes are added up; a tokenizer is not among them.
        runtime: of the bundle's artifacts, else empty.
    """

    name: str
    group: Group
    process: Mapping[str, Any]
    files: Sequence[Path] = field(repr=False)
    runtime: str = ""

    @property
    def mb(self) -> float:
        """Size in megabytes (10^6 bytes)."""
        return sum(path.stat().st_size for path in self.files) / 1e6


@dataclass(frozen=True)
class StudentFacts:
    """What the peers need of the student: its tokenizer's file, labels in order, and longest input."""

    tokenizer: Path
    labels: tuple[str, ...]
    max_tokens: int


def peers(models: Path, student: StudentFacts, threads: int) -> list[Contender]:
    """The peers whose models ``peer_models.py`` and ``nncf_quantize.py`` wrote into a folder."""

    def peer(name: str, group: Group, kind: str, path: Path, files: Sequence[Path]) -> Contender:
        process = {
            "kind": kind,
            "path": str(path),
            "threads": threads,
            "tokenizer": str(student.tokenizer),
            "labels": student.labels,
            "max_tokens": student.max_tokens,
        }
        return Contender(name, group, process, files)

    found = [
        peer("torch fp32", "torch fp32", "torch", models / "fp32", [models / "fp32/model.safetensors"]),
    ]
    for graph, words in (("ours", "our graph"), ("torch", "torch.onnx"), ("fused", "torch.onnx, ORT optimizer")):
        fp32, int8 = models / f"{graph}.onnx", models / f"{graph}-int8.onnx"
        found.append(peer(f"ORT fp32 ({words})", "ONNX Runtime fp32", "onnxruntime", fp32, [fp32]))
        found.append(
            peer(f"ORT quantize_dynamic ({words})", "ONNX Runtime quantize_dynamic", "onnxruntime", int8, [int8])
        )
    nncf = models / "nncf.xml"
    found.append(
        peer("OpenVINO + NNCF quantize", "OpenVINO + NNCF", "openvino", nncf, [nncf, nncf.with_suffix(".bin")])
    )
    return found


def artifacts(bundle: Bundle, threads: int, precision: str | None = None) -> list[Contender]:
    """The bundle's artifacts: of each runtime the first, or the one of a precision."""
    found: dict[str, Contender] = {}
    for artifact in bundle.artifacts(None, precision):
        process = {
            "kind": "edgescribe",
            "path": str(bundle.folder.resolve()),
            "runtime": artifact.runtime,
            "precision": artifact.precision,
            "threads": threads,
        }
        name = f"edgescribe {artifact.precision}, {artifact.runtime}"
        files = [bundle.folder / entry.path for entry in artifact.files]
        found.setdefault(artifact.runtime, Contender(name, "edgescribe", process, files, artifact.runtime))
    return list(found.values())
