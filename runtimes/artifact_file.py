"""The first look at an artifact, the same for every engine: a file that is there and can be read."""

from __future__ import annotations

from pathlib import Path

from ..errors import BundleError


def check_artifact_file(path: Path, suffix: str, runtime: str) -> None:
    """Check that ``path`` is a readable, non-empty file with the suffix that the runtime opens.

    Raises:
        BundleError: it is not.
    """
    if path.suffix != suffix:
        raise BundleError(f"{path} is not an artifact for {runtime}: it opens {suffix} files")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; check the bundle's folder") from error
    if empty:
        raise BundleError(f"{path} is empty; copy the bundle anew")
