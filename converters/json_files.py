"""JSON files of a checkpoint, read with care: they come from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import StudentError


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        StudentError: the file cannot be read, is not UTF-8 or not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise StudentError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise StudentError(f"{path} holds {type(content).__name__} where an object is expected")
    return content
