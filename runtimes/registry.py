"""The runtimes by name. Importing this imports no engine; that happens when one is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from ..errors import UsageError
from .contract import Availability, GraphSession, OpenOptions, Runtime
from .decoder_contract import DecoderOptions, DecoderRuntime, DecoderSession
from .encoder_decoder_contract import EncoderDecoderOptions, EncoderDecoderRuntime, EncoderDecoderSession

RUNTIMES: tuple[str, ...] = ("onnxruntime", "openvino", "litert")
"""Names of the runtimes; each is the module of this package that holds its adapter as ``RUNTIME``."""


def runtime(name: str) -> Runtime:
    """The adapter of the runtime ``name``; its engine need not be installed.

    Raises:
        UsageError: there is no runtime of that name.
    """
    if name not in RUNTIMES:
        raise UsageError(f"there is no runtime {name!r}; choose one of {', '.join(RUNTIMES)}")
    return cast(Runtime, importlib.import_module(f".{name}", __package__).RUNTIME)


def availability() -> tuple[Availability, ...]:
    """Which runtimes can be used on this machine, in the order of :data:`RUNTIMES`. Imports every engine there is."""
    return tuple(runtime(name).availability() for name in RUNTIMES)


def open_artifact(runtime_name: str, path: Path, options: OpenOptions | None = None) -> GraphSession:
    """Open an artifact with a runtime and check its known answers; see :meth:`~.contract.Runtime.open`.

    Raises:
        UsageError: there is no runtime of that name, or the options are out of range.
        MissingExtraError: its engine is not installed.
        EngineError: the device is not there, or the engine refuses or miscomputes the artifact.
        BundleError: the file is not an artifact of this runtime.
    """
    return runtime(runtime_name).open(path, options or OpenOptions())


def decoder_runtime(name: str) -> DecoderRuntime:
    """The decoder adapter of the runtime ``name``; its engine need not be installed.

    Raises:
        UsageError: there is no runtime of that name.
    """
    if name not in RUNTIMES:
        raise UsageError(f"there is no runtime {name!r}; choose one of {', '.join(RUNTIMES)}")
    return cast(DecoderRuntime, importlib.import_module(f".{name}_decoder", __package__).DECODER)


def open_decoder(runtime_name: str, path: Path, options: DecoderOptions | None = None) -> DecoderSession:
    """Open a decoder's artifact with a runtime; see :meth:`~.decoder_contract.DecoderRuntime.open_decoder`."""
    return decoder_runtime(runtime_name).open_decoder(path, options or DecoderOptions())


def encoder_decoder_runtime(name: str) -> EncoderDecoderRuntime:
    """The adapter of the runtime ``name`` for encoder-decoders; its engine need not be installed.

    Raises:
        UsageError: there is no runtime of that name.
    """
    if name not in RUNTIMES:
        raise UsageError(f"there is no runtime {name!r}; choose one of {', '.join(RUNTIMES)}")
    module = importlib.import_module(f".{name}_encoder_decoder", __package__)
    return cast(EncoderDecoderRuntime, module.ENCODER_DECODER)


def open_encoder_decoder(
    runtime_name: str, path: Path, options: EncoderDecoderOptions | None = None
) -> EncoderDecoderSession:
    """Open an encoder-decoder's artifact; see :meth:`~.encoder_decoder_contract.EncoderDecoderRuntime`."""
    return encoder_decoder_runtime(runtime_name).open_encoder_decoder(path, options or EncoderDecoderOptions())
