"""ONNX Runtime on the CPU: opens ``.onnx`` files with free batch and token axes."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, EngineError, InputError, MissingExtraError
from .artifact_file import check_artifact_file
from .contract import Availability, Effective, Feeds, OpenOptions, Outputs, TensorSpec
from .feeds import checked_feeds
from .known_answers import check_known_answers
from .threads import thread_count

NAME = "onnxruntime"
PROVIDER = "CPUExecutionProvider"
_DAMAGED = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel", "UnicodeDecodeError")
_DTYPES = {"tensor(int32)": "int32", "tensor(float)": "float32"}
_FATAL_ONLY = 4
_EXACT_ON_X86 = {"avx512_vnni", "avx_vnni", "avx_vnni_int8"}


def engine() -> Any:
    """The package ``onnxruntime``, imported with its telemetry switched off.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: it is installed and cannot be imported.
    """
    # Read by the library while it is loaded, so it has to stand here before the import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        module = importlib.import_module("onnxruntime")
        module.disable_telemetry_events()
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise EngineError(f"onnxruntime cannot be imported: {error}; install it anew") from error
        raise MissingExtraError("onnxruntime", "onnxruntime") from error
    except (ImportError, AttributeError, OSError) as error:
        raise EngineError(f"onnxruntime cannot be imported: {error}; install it anew") from error
    return module


class OnnxRuntimeSession:
    """An ``.onnx`` file opened in ONNX Runtime; see :class:`~edgescribe.runtimes.contract.GraphSession`."""

    def __init__(self, session: Any, effective: Effective) -> None:
        self.effective = effective
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._session: Any = session

    def run(self, feeds: Feeds) -> Outputs:
        """Run once; any number of threads may do so at a time."""
        session = self._session
        if session is None:
            raise EngineError("this session was closed; open the artifact again")
        checked = checked_feeds(feeds, self.inputs)
        try:
            results = session.run(self._names, checked)
        except Exception as error:  # the engine's classes share no root of their own
            if type(error).__name__ == "InvalidArgument":
                raise InputError(f"ONNX Runtime refuses the feeds: {_first_line(error)}") from error
            raise EngineError(f"ONNX Runtime failed while running: {_first_line(error)}") from error
        return dict(zip(self._names, (np.asarray(result) for result in results), strict=True))

    def close(self) -> None:
        """Let go of the engine's session; calls under way in other threads still end well."""
        self._session = None


class OnnxRuntimeRuntime:
    """The adapter of ONNX Runtime."""

    name = NAME
    extra = NAME

    def availability(self) -> Availability:
        """Whether ONNX Runtime can be imported here."""
        try:
            module = engine()
        except EngineError as error:
            return Availability(NAME, False, "onnxruntime", "", (), str(error))
        return Availability(NAME, True, "onnxruntime", module.__version__, ("cpu",), "")

    def open(self, artifact: Path, options: OpenOptions) -> OnnxRuntimeSession:
        """Open an ``.onnx`` file on the CPU; ``options.cache_dir`` has nothing to keep here.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            EngineError: a device other than the CPU was asked for, or the engine refuses the graph.
            WrongAnswerError: it miscomputes a known answer.
            BundleError: the file is missing, damaged or not ONNX.
        """
        threads = thread_count(options.threads)
        module = engine()
        if options.device != "cpu":
            providers = ", ".join(module.get_available_providers())
            raise EngineError(
                f"the runtime onnxruntime has no device {options.device!r}: it runs on the CPU here "
                f"(providers of this build: {providers}); ask for device 'cpu', or take the runtime openvino for an NPU"
            )
        check_artifact_file(artifact, ".onnx", "ONNX Runtime")
        try:
            session = module.InferenceSession(
                str(artifact),
                _session_options(module, threads, options.spinning),
                providers=[PROVIDER],
                enable_fallback=0,
                read_config_from_model=0,
            )
        except Exception as error:  # the engine's classes share no root of their own
            if type(error).__name__ in _DAMAGED:
                raise BundleError(
                    f"{artifact} is not a readable ONNX file: {_first_line(error)}; copy the bundle anew"
                ) from error
            raise EngineError(f"ONNX Runtime {module.__version__} refuses {artifact}: {_first_line(error)}") from error
        try:
            opened = OnnxRuntimeSession(session, _effective(module, session))
        except UnicodeDecodeError as error:
            raise BundleError(f"{artifact} has names that are not UTF-8; copy the bundle anew") from error
        check_known_answers(opened, options.known_answers, artifact)
        return opened


RUNTIME = OnnxRuntimeRuntime()


def _session_options(module: Any, threads: int, spinning: bool) -> Any:
    options = module.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
    # What fails is raised as well, so its log line would say it twice.
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if products_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def products_saturate(root: Path = Path("/")) -> bool:
    """Whether this CPU's int8 products need the engine's exact, slower kernels.

    On x86-64 without VNNI the quick kernels add pairs of 8-bit products in 16 bits, which saturates and gives wrong
    answers without a word (docs/decisions/007). With VNNI they are exact, and the option would only cost time.
    """
    from ..device_profiles.probe_cpu import probe_cpu

    cpu = probe_cpu(root)
    features = {feature for cluster in cpu.clusters.values() for feature in cluster.features}
    return cpu.isa == "x86_64" and not features & _EXACT_ON_X86


def _effective(module: Any, session: Any) -> Effective:
    providers = session.get_providers()
    if providers != [PROVIDER]:
        raise EngineError(f"ONNX Runtime took the providers {', '.join(providers)} instead of {PROVIDER}")
    return Effective(
        runtime=NAME,
        engine="onnxruntime",
        engine_version=module.__version__,
        device="cpu",
        provider=PROVIDER,
        precision="float32",
        threads=session.get_session_options().intra_op_num_threads,
    )


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
