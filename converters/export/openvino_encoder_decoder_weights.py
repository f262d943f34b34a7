"""Stores the constants of several OpenVINO models in one ``.bin``, each distinct one once.

OpenVINO writes a ``.bin`` for each ``.xml``. Here the models' constants are laid behind each other anew and the
offsets in the models are changed. They begin at multiples of 64 bytes, which the CPU plugin asks of what it shall use
where it is mapped, without a copy.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Sequence
from pathlib import Path

ALIGNMENT = 64

_CONSTANT = re.compile(r'(<layer [^>]*type="Const"[^>]*>\s*<data [^>]*?offset=")(\d+)("[^>]*?size=")(\d+)(")')


def share_weights(drafts: Sequence[Path], stored: Path) -> None:
    """Write ``stored`` with the constants of all ``drafts`` (``.xml``, each with a ``.bin``), and let them refer to it.

    The ``.bin`` files of the drafts are deleted.

    Raises:
        OSError: a file cannot be read or written.
    """
    places: dict[tuple[bytes, int], int] = {}
    with stored.open("wb") as file:
        for draft in drafts:
            source = draft.with_suffix(".bin")
            with source.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:

                def moved(found: re.Match[str], content: mmap.mmap = content) -> str:
                    offset, size = int(found[2]), int(found[4])
                    with memoryview(content)[offset : offset + size] as part:
                        key = hashlib.sha256(part).digest(), size
                        if key not in places:
                            file.write(bytes(-file.tell() % ALIGNMENT))
                            places[key] = file.tell()
                            file.write(part)
                    return f"{found[1]}{places[key]}{found[3]}{size}{found[5]}"

                text = _CONSTANT.sub(moved, draft.read_text(encoding="utf-8"))
            draft.write_text(re.sub(r">\s+<", "><", text), encoding="utf-8")
            source.unlink()
