"""How long an engine's own calls take, heard in the process that makes them.

A clock around the one compiled function in which an engine computes tells its part of a step; whatever else the step
takes is Python's side. Listening by the interpreter's profiling hook instead would charge Python's side for every
other call that it makes. What this costs is a frame and two readings of the clock for each run of the engine, under a
microsecond, and that is counted as Python's.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

COMPUTING = {
    "litert": ("ai_edge_litert._pywrap_litert_compiled_model_wrapper", "CompiledModelWrapper", "RunByIndex"),
    "onnxruntime": ("onnxruntime.capi.onnxruntime_pybind11_state", "InferenceSession", "run_with_iobinding"),
    "openvino": ("openvino._pyopenvino", "InferRequest", "infer"),
}
"""By runtime: module, class and name of the compiled function in which sessions of ours have the engine compute."""


class EngineClock:
    """Nanoseconds and number of the engine's calls since they were last asked for."""

    def __init__(self) -> None:
        self._spent = self._calls = 0

    def taken(self) -> tuple[int, int]:
        """Nanoseconds and calls since the last time."""
        found = self._spent, self._calls
        self._spent = self._calls = 0
        return found

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call`` with the clock around it."""
        now = time.perf_counter_ns

        def timed(*given: Any, **named: Any) -> Any:
            begun = now()
            try:
                return call(*given, **named)
            finally:
                self._spent += now() - begun
                self._calls += 1

        return timed


@contextmanager
def clocked(runtime: str) -> Iterator[EngineClock]:
    """A clock on the runtime's calls, whichever session makes them.

    Raises:
        RuntimeError: the engine has no such function any more.
    """
    module, kind, name = COMPUTING[runtime]
    holder = getattr(importlib.import_module(module), kind, None)
    call = getattr(holder, name, None)
    if holder is None or call is None:
        raise RuntimeError(f"{runtime} computes by another function than {module}.{kind}.{name}, which is known here")
    clock = EngineClock()
    setattr(holder, name, clock.around(call))
    try:
        yield clock
    finally:
        setattr(holder, name, call)
