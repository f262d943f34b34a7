"""Opening decoders' graphs in ONNX Runtime on the CPU: options, devices, and what its errors mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BundleError, EngineError
from .contract import Effective
from .onnxruntime import NAME, PROVIDER
from .onnxruntime_decoder_binding import first_line

_DAMAGED = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel", "UnicodeDecodeError")
_FATAL_ONLY = 4


def check_device(module: Any, device: str) -> None:
    """Refuse a device that this engine does not have here.

    Raises:
        EngineError: it is another than the CPU.
    """
    if device != "cpu":
        providers = ", ".join(module.get_available_providers())
        raise EngineError(
            f"the runtime onnxruntime has no device {device!r}: it runs on the CPU here "
            f"(providers of this build: {providers}); ask for device 'cpu', or take the runtime openvino for an NPU"
        )


def engine_options(module: Any, threads: int, spinning: bool) -> Any:
    """The engine's options for any graph of a decoder."""
    options = module.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
    # What fails is raised as well, so its log line would say it twice.
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return options


def open_engine_session(module: Any, file: Path, options: Any) -> Any:
    """The engine's session of one graph.

    Raises:
        BundleError: the file is damaged.
        EngineError: the engine refuses it.
    """
    try:
        return module.InferenceSession(
            str(file), options, providers=[PROVIDER], enable_fallback=0, read_config_from_model=0
        )
    except Exception as error:  # the engine's classes share no root of their own
        said = first_line(error)
        if type(error).__name__ in _DAMAGED:
            raise BundleError(f"{file} is not a readable ONNX file: {said}; copy the bundle anew") from error
        raise EngineError(f"ONNX Runtime {module.__version__} refuses {file}: {said}") from error


def effective_of(module: Any, session: Any) -> Effective:
    """What really runs.

    Raises:
        EngineError: another provider than the CPU's.
    """
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
