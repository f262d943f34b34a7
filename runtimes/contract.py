"""What every engine's adapter gives, whatever the engine: :class:`Runtime` opens an artifact, a session runs it.

An artifact for an encoder is a graph of integer inputs ``[batch, tokens]`` (int32) and float32 outputs.
A session is safe to call from several threads at once, and never falls back to another device or
precision than it was asked for without an :class:`~edgescribe.errors.EngineError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[np.int32]]
Outputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of an input or output; ``None`` stands for a dimension free at run time."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class KnownAnswer:
    """Feeds with the outputs they must give: ``abs(got - expected) <= tolerance`` element by element.

    ``feeds``: int32 ``[batch, tokens]`` by input name; ``expected``: float32 by output name;
    ``tolerance``: an absolute difference in the outputs' own unit (logits, or a cosine component).
    """

    feeds: Mapping[str, NDArray[np.int32]]
    expected: Mapping[str, NDArray[np.float32]]
    tolerance: float


@dataclass(frozen=True)
class OpenOptions:
    """How to open an artifact.

    Attributes:
        device: what must run it: ``"cpu"`` or ``"npu"``. Never silently replaced.
        threads: intra-operator threads; 0 takes the number of physical cores, at most 4.
        cache_dir: folder for the engine's own compiled-model or packed-weight cache; None turns it off.
        spinning: let waiting threads spin (faster alone on an idle machine, slower on a busy one).
        padding_side: where a runtime puts padding of its own: as the student was trained.
        max_tokens: the most tokens that the student takes, so that a runtime whose memory grows with every new
            token count (OpenVINO) may round it up; None leaves token counts as they are.
        known_answers: checked once on open; a wrong answer raises :class:`~edgescribe.errors.WrongAnswerError`.
    """

    device: str = "cpu"
    threads: int = 0
    cache_dir: Path | None = None
    spinning: bool = False
    padding_side: Literal["left", "right"] = "right"
    max_tokens: int | None = None
    known_answers: Sequence[KnownAnswer] = field(default=(), repr=False)


@dataclass(frozen=True)
class Effective:
    """What a session really uses, read back from the engine, not from what was asked."""

    runtime: str
    engine: str
    engine_version: str
    device: str
    provider: str
    precision: str
    threads: int


@dataclass(frozen=True)
class Availability:
    """Whether a runtime's engine can be used here: its package, version and devices, or why not."""

    runtime: str
    available: bool
    engine: str
    version: str
    devices: tuple[str, ...]
    reason: str


@runtime_checkable
class GraphSession(Protocol):
    """An opened artifact that maps feeds to outputs without state."""

    effective: Effective
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Feeds) -> Outputs:
        """Run once. Feeds are int32 ``[batch, tokens]``; arrays returned belong to the caller.

        Raises:
            InputError: feeds whose names, dtypes or shapes the artifact does not take.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory. Closing twice is allowed; running after it raises EngineError."""
        ...


class Runtime(Protocol):
    """An engine's adapter."""

    name: str
    extra: str

    def availability(self) -> Availability:
        """Whether the engine can be imported here, with its version and devices. Never raises."""
        ...

    def open(self, artifact: Path, options: OpenOptions) -> GraphSession:
        """Open one artifact and check its known answers.

        Args:
            artifact: the main file: ``.onnx``, ``.xml`` (with its ``.bin`` beside it) or ``.tflite``.

        Raises:
            MissingExtraError: the engine is not installed.
            EngineError: the device asked for is not there, or the engine refuses or miscomputes this artifact.
            BundleError: the file is not an artifact of this runtime.
        """
        ...
