"""The folder in which a conversion keeps its stages, so that it can be looked at, taken up again, or thrown away."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError

MARKER = "conversion.json"


@dataclass(frozen=True)
class Stages:
    """Where each stage's result lies: checkpoint folders of the pruned and the recovered student, training states."""

    folder: Path

    @property
    def pruned(self) -> Path:
        """The pruned student, a checkpoint."""
        return self.folder / "pruned"

    @property
    def training(self) -> Path:
        """States of training, by phase."""
        return self.folder / "training"

    @property
    def recovered(self) -> Path:
        """The student trained on the grid, a checkpoint with its grids."""
        return self.folder / "recovered"

    def remove(self) -> None:
        """Throw the stages away."""
        shutil.rmtree(self.folder, ignore_errors=True)


def open_stages(out: Path, fingerprint: dict[str, Any], resume: bool) -> Stages:
    """Make the folder ``<out>.work``, or with ``resume`` take up what is in it.

    Raises:
        InputError: ``resume``, and there is nothing to resume or it belongs to another conversion.
        OutputError: the folder cannot be written, or something else has its name.
    """
    folder = out.with_name(out.name + ".work")
    marker = folder / MARKER
    text = json.dumps(fingerprint, indent=2, sort_keys=True, default=str)
    if resume:
        if not marker.is_file():
            raise InputError(f"there is no interrupted conversion at {folder}; start one without --resume")
        known = marker.read_text(encoding="utf-8")
        if known != text:
            raise InputError(
                f"{folder} belongs to a conversion with other arguments ({_difference(known, fingerprint)}); "
                "repeat those to resume it, or start anew without --resume"
            )
        return Stages(folder)
    if folder.exists() and not marker.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is needed for the stages of the conversion and is something else; move it away")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        marker.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}; choose another --out") from error
    return Stages(folder)


def _difference(known: str, now: dict[str, Any]) -> str:
    try:
        before = json.loads(known)
    except ValueError:
        return "its record is damaged"
    after = json.loads(json.dumps(now, default=str))
    keys = [key for key in sorted(set(before) | set(after)) if before.get(key) != after.get(key)]
    return ", ".join(keys) or "its record differs"
