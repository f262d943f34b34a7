"""OpenVINO on the CPU or an NPU: opens ``.xml`` files (with their ``.bin``) with free batch and token axes."""

from __future__ import annotations

import importlib
import queue
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, EngineError, InputError, MissingExtraError
from .artifact_file import check_artifact_file
from .code_pages import release_code
from .contract import Availability, Effective, Feeds, OpenOptions, Outputs, TensorSpec
from .feeds import checked_feeds
from .known_answers import check_known_answers
from .threads import thread_count
from .token_padding import TokenPadding, rounded_tokens, token_outputs

NAME = "openvino"
MOST_ROWS = 8
_DEVICES = {"cpu": "CPU", "npu": "NPU"}
_CONVERTER = "openvino.tools.ovc"
_REFUSALS = (RuntimeError, UnicodeDecodeError)  # the latter where a message quotes bytes of a damaged file
_DTYPES = {"i32": "int32", "f32": "float32"}
_PRECISIONS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def engine() -> Any:
    """The package ``openvino``, imported without its converter from other formats and the telemetry that this loads.

    ``openvino.convert_model`` stays there for whoever asks for it, and is imported then.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: it is installed and cannot be imported.
    """
    # OpenVINO does without the converter where it cannot be imported: 15 MB less.
    left_out = "openvino" not in sys.modules and _CONVERTER not in sys.modules
    if left_out:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]
    try:
        module = importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise EngineError(f"openvino cannot be imported: {error}; install it anew") from error
        raise MissingExtraError("openvino", "openvino") from error
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise EngineError(f"openvino cannot be imported: {error}; install it anew") from error
    finally:
        if left_out:
            sys.modules.pop(_CONVERTER, None)
    if left_out and "convert_model" not in vars(module):
        module.__getattr__ = _converter_on_demand  # type: ignore[method-assign]
    return module


def _converter_on_demand(name: str) -> Any:
    """Stands in for ``openvino.__getattr__``."""
    if name != "convert_model":
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    return importlib.import_module(_CONVERTER).convert_model


class OpenVinoSession:
    """A model compiled by OpenVINO; see :class:`~edgescribe.runtimes.contract.GraphSession`.

    Threads take turns on as many inference requests as the engine calls optimal (one, for latency).
    The engine keeps kernels for each shape that it has seen, over a megabyte for one of a small student, so
    token counts are rounded up where the student's most is known, and batches are run in powers of two.
    """

    def __init__(self, compiled: Any, effective: Effective, options: OpenOptions) -> None:
        self.effective = effective
        self._most, self._left = options.max_tokens or 0, options.padding_side == "left"
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self._with_tokens = token_outputs(self.outputs)
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(max(1, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))):
            self._requests.put(compiled.create_infer_request())
        self._closed = threading.Event()

    def run(self, feeds: Feeds) -> Outputs:
        """Run once; any number of threads may do so at a time."""
        checked = checked_feeds(feeds, self.inputs)
        request = self._requests.get()
        if request is None or self._closed.is_set():
            self._requests.put(None)  # for the next thread that waits
            raise EngineError("this session was closed; open the artifact again")
        try:
            parts = [self._infer(request, checked, rows) for rows in _powers_of_two(len(next(iter(checked.values()))))]
            return parts[0] if len(parts) == 1 else {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
        except _REFUSALS as error:
            raise InputError(f"OpenVINO refuses the feeds: {_last_line(error)}") from error
        finally:
            self._requests.put(request)
            if self._closed.is_set():
                self._drop_idle_requests()

    def close(self) -> None:
        """Let go of the engine's model; calls under way in other threads still end well."""
        if not self._closed.is_set():
            self._closed.set()
            self._drop_idle_requests()

    def _infer(self, request: Any, feeds: Feeds, rows: slice) -> Outputs:
        tokens = next(iter(feeds.values())).shape[1]
        padding = TokenPadding(tokens, rounded_tokens(tokens, self._most), self._left)
        results = request.infer({name: padding.add(array[rows]) for name, array in feeds.items()})
        outputs = {}
        for index, spec in enumerate(self.outputs):
            value = results[index]
            outputs[spec.name] = np.array(padding.remove(value) if spec.name in self._with_tokens else value)
        return outputs

    def _drop_idle_requests(self) -> None:
        try:
            while True:
                self._requests.get_nowait()
        except queue.Empty:
            self._requests.put(None)


class OpenVinoRuntime:
    """The adapter of OpenVINO."""

    name = NAME
    extra = NAME

    def availability(self) -> Availability:
        """Whether OpenVINO can be imported here, and which of its devices are there (``cpu``, ``npu``, ``gpu``)."""
        try:
            module = engine()
            devices = tuple(device.lower() for device in module.Core().available_devices)
        except EngineError as error:
            return Availability(NAME, False, "openvino", "", (), str(error))
        except RuntimeError as error:
            reason = f"OpenVINO cannot list its devices: {_last_line(error)}"
            return Availability(NAME, False, "openvino", _version(module), (), reason)
        return Availability(NAME, True, "openvino", _version(module), devices, "")

    def open(self, artifact: Path, options: OpenOptions) -> OpenVinoSession:
        """Compile an ``.xml`` file for the CPU or the NPU; ``options.cache_dir`` keeps the compiled model.

        ``options.spinning`` changes nothing: OpenVINO's threads are TBB's, which decide that themselves.

        Raises:
            MissingExtraError: OpenVINO is not installed.
            EngineError: the device is not there, or the engine refuses the model or the device.
            WrongAnswerError: it miscomputes a known answer.
            BundleError: the file is missing, damaged or not OpenVINO's.
        """
        threads = thread_count(options.threads)
        module = engine()
        core = module.Core()
        device = _device(core, options.device)
        check_artifact_file(artifact, ".xml", "OpenVINO")
        _check_head(artifact)
        compiled = _compile(module, core, artifact, device, _config(device, threads, options.cache_dir))
        effective = _effective(module, compiled, threads)
        if effective.device != options.device:
            raise EngineError(f"OpenVINO runs {artifact} on {effective.provider} instead of {device}")
        session = OpenVinoSession(compiled, effective, options)
        check_known_answers(session, options.known_answers, artifact)
        release_code(Path(module.__file__).parent)  # what read and compiled the model
        return session


RUNTIME = OpenVinoRuntime()


def _powers_of_two(batch: int) -> list[slice]:
    """Rows of a batch in runs of 8, 4, 2 and 1."""
    runs, start = [], 0
    while start < batch:
        size = 1 << (min(batch - start, MOST_ROWS).bit_length() - 1)
        runs.append(slice(start, start + size))
        start += size
    return runs


def _device(core: Any, asked: str) -> str:
    device = _DEVICES.get(asked)
    # Listing the devices loads every plugin, 15 MB; the CPU is always there.
    if device == "CPU":
        return device
    there = core.available_devices
    if device is None or device not in there:
        raise EngineError(
            f"OpenVINO has no device {asked!r} here; it has {', '.join(there)}: "
            "check the NPU's driver with 'edgescribe doctor', or ask for device 'cpu'"
        )
    return device


def _config(device: str, threads: int, cache_dir: Path | None) -> dict[str, Any]:
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        # Left to itself it computes in bfloat16 or float16 where the processor can.
        config |= {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        # A thread tied to a core waits while another process has it: twice the latency on a busy machine.
        config |= {"ENABLE_CPU_PINNING": False}
    if cache_dir is not None:
        config["CACHE_DIR"] = str(cache_dir)
    return config


def _check_head(artifact: Path) -> None:
    with artifact.open("rb") as file:
        head = file.read(1024)
    # Handed anything else, OpenVINO tries each of its readers for other formats in turn.
    if b"<net" not in head:
        raise BundleError(f"{artifact} is not an OpenVINO model (no <net> in it); copy the bundle anew")


def _compile(module: Any, core: Any, artifact: Path, device: str, config: dict[str, Any]) -> Any:
    try:
        return core.compile_model(str(artifact), device, config)
    except _REFUSALS as error:
        try:
            core.read_model(str(artifact))
        except _REFUSALS as damage:
            raise BundleError(
                f"{artifact} with its .bin is not a readable OpenVINO model: {_last_line(damage)}; copy the bundle anew"
            ) from error
        raise EngineError(f"OpenVINO {_version(module)} refuses {artifact}: {_last_line(error)}") from error


def _effective(module: Any, compiled: Any, threads: int) -> Effective:
    devices = list(compiled.get_property("EXECUTION_DEVICES"))
    supported = compiled.get_property("SUPPORTED_PROPERTIES")
    hint = compiled.get_property("INFERENCE_PRECISION_HINT") if "INFERENCE_PRECISION_HINT" in supported else None
    if "INFERENCE_NUM_THREADS" in supported:
        threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
    precision = hint.to_string() if hint is not None else ""
    words = {engine_name: word for word, engine_name in _DEVICES.items()}
    return Effective(
        runtime=NAME,
        engine="openvino",
        engine_version=_version(module),
        device=words.get(devices[0], devices[0]) if len(devices) == 1 else "several",
        provider=",".join(devices),
        precision=_PRECISIONS.get(precision, precision or "device"),
        threads=threads,
    )


def _spec(port: Any) -> TensorSpec:
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    dtype = port.get_element_type().to_string()
    return TensorSpec(port.get_any_name(), _DTYPES.get(dtype, dtype), shape)


def _version(module: Any) -> str:
    return str(module.get_version()).split("-", 1)[0]


def _last_line(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "unreadable names in it"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
