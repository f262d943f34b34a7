"""The peers of summarisers: the unpruned student in CTranslate2, in transformers and in plain ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgescribe.sdk.console import note
from peer_environment import ctranslate2_packages, exporter_packages
from summary_contenders import SummaryContender
from summary_students import BenchmarkStudent
from writer_contenders import LeftOut, brief, takes_part

HERE = Path(__file__).parent
NAMES = {
    "ctranslate2": "CTranslate2 int8",
    "transformers": "transformers fp32",
    "onnx-export": "ONNX Runtime fp32, transformers' exporter",
}
LARGEST_EXPORT = 400_000_000
"""Bytes of a checkpoint up to which it is exported for plain ONNX Runtime: three float32 graphs of it."""


def summary_peers(
    student: BenchmarkStudent, folder: Path, only: Sequence[str] | None = None
) -> list[SummaryContender | LeftOut]:
    """The peers, their packages and models made in ``folder`` where they are not there yet."""
    found: list[SummaryContender | LeftOut] = []
    weights = student.checkpoint / "model.safetensors"
    for engine, name in NAMES.items():
        if not takes_part(name, only):
            continue
        try:
            if engine == "transformers":
                process: Mapping[str, Any] = {"kind": engine, "path": str(student.checkpoint.resolve())}
                files: Sequence[Path] = [weights]
            elif engine == "ctranslate2":
                packages = ctranslate2_packages(folder / "ctranslate2")
                made = _made("ctranslate2", packages, student, folder)
                process = {"kind": engine, "path": str(made), "packages": str(packages),
                           "pieces": str(made / "pieces.json")}  # fmt: skip
                files = [made / "model.bin"]
            elif weights.stat().st_size > LARGEST_EXPORT:
                found.append(LeftOut(name, "three float32 graphs of a student of this size are left out"))
                continue
            else:
                made = _made("onnx", exporter_packages(folder / "exporter"), student, folder)
                process, files = {"kind": engine, "path": str(made)}, sorted(made.rglob("*.onnx*"))
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            found.append(LeftOut(name, f"its model could not be made: {brief(error)}"))
            continue
        precision = "int8" if engine == "ctranslate2" else "fp32"
        found.append(SummaryContender(name, "peer", engine, precision, process, files))
    return found


def _made(kind: str, packages: Path, student: BenchmarkStudent, folder: Path) -> Path:
    """The peer's model, made whole or not at all."""
    digest = hashlib.sha256((HERE / "summary_models.py").read_bytes())
    digest.update((student.checkpoint / "model.safetensors").read_bytes())
    kept = folder / "summarisers" / f"{student.name}-{digest.hexdigest()[:16]}" / kind
    if kept.is_dir():
        return kept
    note(f"making {student.name}'s model of {kind} (once)")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        draft = Path(scratch, "model")
        command = [sys.executable, str(HERE / "summary_models.py"), kind, str(student.checkpoint.resolve()), str(draft)]
        settings = os.environ | {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
        if done.returncode:
            raise RuntimeError(done.stderr or f"status {done.returncode}")
        shutil.move(draft, kept)
    return kept
