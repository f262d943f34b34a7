"""Who takes part in the benchmark of writers, and who was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Side = Literal["ours", "peer"]
Bits = Literal[4, 8]


@dataclass(frozen=True)
class WriterContender:
    """One line of the table.

    Attributes:
        name: what the table calls it.
        side: one of ours or a peer.
        engine: ``llama.cpp``, ``onnxruntime-genai``, ``openvino-genai``, or the runtime of ours.
        bits: of the weights of its layers.
        interpreter: the Python of the environment in which it runs.
        process: what ``writer_process.py`` is started with.
        files: the model's files, whose sizes are added up; a tokenizer of its own is not among them.
        kind: which student: ``plain`` is the unpruned one as quantised after training, ``trained`` the unpruned one
            trained on its grid, ``pruned`` a pruned one.
    """

    name: str
    side: Side
    engine: str
    bits: Bits
    interpreter: Path
    process: Mapping[str, Any]
    files: Sequence[Path] = field(repr=False)
    kind: Literal["plain", "trained", "pruned"] = "plain"

    @property
    def mb(self) -> float:
        """Size in megabytes (10^6 bytes)."""
        return sum(path.stat().st_size for path in self.files) / 1e6


@dataclass(frozen=True)
class LeftOut:
    """A contender that cannot take part here, and why."""

    name: str
    reason: str


def takes_part(name: str, only: Sequence[str] | None) -> bool:
    """Whether a contender of this name was asked for: its name holds one of the parts."""
    return only is None or any(part in name for part in only)


def brief(error: BaseException | str) -> str:
    """The last telling line of an error, for the table."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
