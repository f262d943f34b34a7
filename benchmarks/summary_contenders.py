"""Who takes part in the benchmark of summarisers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class SummaryContender:
    """One line of the table.

    Attributes:
        name: what the table calls it.
        side: one of ours or a peer.
        engine: ``ctranslate2``, ``transformers``, ``onnx-export``, or the runtime of ours.
        precision: ``fp32``, ``int8``, or ours of the artifact.
        process: what ``summary_process.py`` is started with.
        files: the model's files, whose sizes are added up.
        kind: which student: ``plain`` is the unpruned one as quantised after training, ``pruned`` a pruned and
            trained one.
    """

    name: str
    side: Literal["ours", "peer"]
    engine: str
    precision: str
    process: Mapping[str, Any]
    files: Sequence[Path] = field(repr=False)
    kind: Literal["plain", "pruned"] = "plain"

    @property
    def mb(self) -> float:
        """Size in megabytes (10^6 bytes)."""
        return sum(path.stat().st_size for path in self.files) / 1e6
