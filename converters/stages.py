"""The folder in which a conversion keeps its stages, so that it can be looked at, taken up again, or thrown away."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError
from .output_errors import output_errors

MARKER = "conversion.json"
SUFFIX = ".work"


@dataclass(frozen=True)
class Stages:
    """Where each stage's result lies: checkpoint folders of the pruned and the recovered student, training states."""

    folder: Path

    @property
    def name(self) -> str:
        """The bundle's name: that of the output's folder."""
        return self.folder.name.removesuffix(SUFFIX)

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

    @property
    def bundle(self) -> Path:
        """The bundle while it is evaluated."""
        return self.folder / "bundle"

    @property
    def curves(self) -> Path:
        """How training went, JSON; written before :attr:`recovered` is."""
        return self.folder / "curves.json"

    def remove(self) -> None:
        """Throw the stages away."""
        shutil.rmtree(self.folder, ignore_errors=True)


def stages_folder(out: Path) -> Path:
    """Where the stages of what is written to ``out`` lie: ``<out>.work`` beside it."""
    return out.with_name(out.name + SUFFIX)


def recorded(out: Path) -> dict[str, Any]:
    """The fingerprint of the conversion that was interrupted.

    Raises:
        InputError: there is none, or its record is damaged.
    """
    marker = stages_folder(out) / MARKER
    if not marker.is_file():
        raise InputError(f"there is nothing to resume: no interrupted work at {marker.parent}; start without --resume")
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{marker} is damaged ({error}); remove {marker.parent} and start anew") from error
    if not isinstance(found, dict):
        raise InputError(f"{marker} is damaged; remove {marker.parent} and start anew")
    return found


def check_stages(out: Path, resume: bool, force: bool) -> None:
    """Check, before any work is done, that the folder of stages can be had.

    Raises:
        InputError: ``resume``, and there is nothing to resume.
        OutputError: interrupted work lies there and neither ``resume`` nor ``force`` is set; or something else does.
    """
    if resume:
        recorded(out)
        return
    folder = stages_folder(out)
    if not os.path.lexists(folder):
        return
    if (folder / MARKER).is_file():
        if not force:
            raise OutputError(
                f"{folder} holds interrupted work for this output; --resume takes it up, --force throws it away"
            )
    elif not folder.is_dir() or any(folder.iterdir()):
        raise OutputError(f"{folder} is needed for the stages of the work and is something else; move it away")


def open_stages(out: Path, fingerprint: Mapping[str, Any], *, resume: bool, force: bool) -> Stages:
    """Make the folder ``<out>.work``, or with ``resume`` take up what is in it.

    Args:
        fingerprint: plain values, which must be the same for the work to go on.

    Raises:
        InputError: ``resume``, and there is nothing to resume or it belongs to other work.
        OutputError: the folder cannot be written, or see :func:`check_stages`.
    """
    folder = stages_folder(out)
    check_stages(out, resume, force)
    if resume:
        differences = _differences(recorded(out), json.loads(_text(fingerprint)))
        if differences:
            raise InputError(
                f"{folder} belongs to work with other arguments ({', '.join(differences)}); "
                "repeat those to resume it, or start anew with --force"
            )
        return Stages(folder)
    with output_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / MARKER).write_text(_text(fingerprint), encoding="utf-8")
    return Stages(folder)


def put_into_place(folder: Path, out: Path) -> None:
    """Rename a finished folder to ``out``, in place of what stands there.

    Raises:
        OutputError: that cannot be done; what stood there stays.
    """
    old = folder.with_name(f"{folder.name}.old")
    with output_errors(out):
        if os.path.lexists(out):
            out.rename(old)
        try:
            folder.rename(out)
        except BaseException:
            if os.path.lexists(old):
                old.rename(out)
            raise
    shutil.rmtree(old, ignore_errors=True)


def _text(fingerprint: Mapping[str, Any]) -> str:
    return json.dumps(fingerprint, indent=2, sort_keys=True, default=str)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of what is not the same."""
    found: list[str] = []
    for key in sorted(set(before) | set(after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(prefix + key)
    return found
