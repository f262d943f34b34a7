"""A decoder's ``.tflite`` in LiteRT: running its signatures on KV caches that stay in the engine's memory."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .engine_messages import without_info_lines
from .litert_decoder_file import DecoderFile, room_axis

IN_MEMORY = ":memory"
"""LiteRT's name for packing weights into shared memory, without a file."""

_HIDDEN = np.float32(-1e9)
"""Added to the scores of what a token must not see: its exponential is exactly 0 in float32."""

_UNRELATED = ("WARNING: [npu_registry", "WARNING: [gpu_registry")
"""What the engine says about accelerators that were not asked for."""


class DecoderModel:
    """The engine's model, shared by a session and its forks, which take turns.

    Args:
        module: ``ai_edge_litert.compiled_model``.
        file: what the artifact holds, with the room that the caches shall have.
        limit: the room that they have in the artifact.
        threads: the engine's threads.
        packed: path of the file of packed weights, or :data:`IN_MEMORY`.

    Raises:
        EngineError: the engine refuses the artifact.
    """

    def __init__(self, module: Any, file: DecoderFile, limit: int, threads: int, packed: str) -> None:
        self.file = file
        self.lock = threading.Lock()
        self._sessions = 0
        self._room_mask = np.zeros(2 * file.room, np.float32)
        self._room_mask[file.room :] = _HIDDEN
        with without_info_lines(*_UNRELATED), self.telling("refuses"):
            # Else the engine loads what libraries for GPUs and NPUs it finds beside itself.
            nowhere = f"{os.devnull}/none"
            environment = module.Environment.create(
                options=module.EnvironmentOptions(
                    runtime_path=nowhere, compiler_plugin_path=nowhere, dispatch_library_path=nowhere
                )
            )
            options = module.Options(
                hardware_accelerators=module.HardwareAccelerator.CPU,
                cpu_options=module.CpuOptions(num_threads=threads, xnnpack_weight_cache_path=packed),
            )
            self._compiled = module.CompiledModel.from_file(str(file.path), environment=environment, options=options)
            names = self._compiled.get_signature_list()
            self._signatures: dict[int, _Signature] = {}
            for tokens in file.sizes:
                key = f"decode_{tokens}"
                if file.room != limit:
                    shapes = {"mask": (1, 1, tokens, file.room), **file.caches}
                    for name, shape in shapes.items():
                        self._compiled.resize_input_tensor_by_name(key, name, shape, strict=False)
                self._signatures[tokens] = _Signature(self._compiled, key, names[key], file.caches)

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """The engine's failures become an EngineError."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[-300:] or type(error).__name__
            raise EngineError(f"LiteRT {what} {self.file.path}: {said}") from error

    def new_caches(self) -> dict[str, Any]:
        """Caches for one more session, all zero: what the mask hides must be finite."""
        with self.lock, self.telling("cannot make a KV cache for"), without_info_lines(*_UNRELATED):
            caches = {name: self._compiled.create_input_buffer_by_name("decode_1", name) for name in self.file.caches}
            for name, shape in self.file.caches.items():
                caches[name].write(np.zeros(shape, np.float32))
            self._sessions += 1
        return caches

    def read(self, caches: dict[str, Any], length: int) -> dict[str, NDArray[np.generic]]:
        """Copies of a session's caches, cut to ``length`` tokens."""
        found: dict[str, NDArray[np.generic]] = {}
        with self.lock, self.telling("cannot read the KV cache of"):
            for name, shape in self.file.caches.items():
                whole = caches[name].read(math.prod(shape), np.float32).reshape(shape)
                found[name] = whole[kept(name, length)].copy()
        return found

    def write(self, caches: dict[str, Any], arrays: Mapping[str, NDArray[np.generic]], length: int) -> None:
        """Put ``arrays`` of :meth:`read` into a session's caches; the rest of these becomes zero."""
        with self.lock, self.telling("cannot write the KV cache of"):
            for name, shape in self.file.caches.items():
                whole = np.zeros(shape, np.float32)
                whole[kept(name, length)] = arrays[name]
                caches[name].write(whole)

    def release(self, caches: dict[str, Any]) -> None:
        """Free a session's caches; with the last session's the model."""
        with self.lock:
            for buffer in caches.values():
                buffer.destroy()
            self._sessions -= 1
            if self._sessions == 0:
                with without_info_lines(*_UNRELATED):
                    self._signatures.clear()
                    self._compiled = None

    def run(
        self, caches: dict[str, Any], tokens: NDArray[np.int32], start: int, size: int, wanted: int
    ) -> NDArray[np.float32]:
        """Append ``tokens`` at ``start`` by the signature for ``size``; logits ``[wanted, V]`` of the last ``wanted``.

        Raises:
            EngineError: the engine failed.
        """
        room, count = self.file.room, len(tokens)
        hidden = np.lib.stride_tricks.as_strided(self._room_mask[room - 1 - start :], (size, room), (-4, 4))
        feeds: dict[str, NDArray[Any]] = {
            "tokens": tokens if count == size else np.concatenate([tokens, np.zeros(size - count, np.int32)]),
            "positions": np.arange(start, start + size, dtype=np.int32),
            "mask": hidden,
            "key_start": np.array([0, 0, start, 0], np.int32),
            "value_start": np.array([0, 0, 0, start], np.int32),
            "last": np.array([count - 1], np.int32),
        }
        with self.lock, self.telling("failed to run"):
            return self._signatures[size].run(feeds, caches, count, wanted, self.file.vocabulary)


class _Signature:
    """A signature with buffers for its small inputs and its logits."""

    def __init__(self, compiled: Any, key: str, names: dict[str, list[str]], caches: dict[str, Any]) -> None:
        self._compiled = compiled
        self._index = compiled.get_signature_index(key)
        self._inputs, self._outputs = names["inputs"], names["outputs"]
        small = [name for name in self._inputs if name not in caches]
        self._small = {name: compiled.create_input_buffer_by_name(key, name) for name in small}
        self._logits = compiled.create_output_buffer_by_name(key, "logits")
        self._last_only = "last" in self._small

    def run(
        self, feeds: dict[str, NDArray[Any]], caches: dict[str, Any], count: int, wanted: int, vocabulary: int
    ) -> NDArray[np.float32]:
        """Run on ``count`` tokens and filling; the logits of the last ``wanted``."""
        for name, buffer in self._small.items():
            buffer.write(feeds[name])
        inputs = [caches.get(name) or self._small[name] for name in self._inputs]
        outputs = [caches.get(name, self._logits) for name in self._outputs]
        self._compiled.run_by_index(self._index, inputs, outputs)
        if not wanted:
            return np.zeros((0, vocabulary), np.float32)
        rows = 1 if self._last_only else count
        logits: NDArray[np.float32] = self._logits.read(rows * vocabulary, np.float32).reshape(rows, vocabulary)
        return logits if wanted == rows else logits[rows - wanted :].copy()


def kept(name: str, length: int) -> tuple[slice, ...]:
    """The part of a cache that holds its first ``length`` tokens."""
    return (*(slice(None),) * room_axis(name), slice(0, length))


def packed_weights(cache_dir: Path | None, artifact: Path, version: str) -> str:
    """Where the engine keeps packed weights: a file named after the artifact's content and the engine's version.

    Raises:
        EngineError: the folder cannot be used.
    """
    if cache_dir is None:
        return IN_MEMORY
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with artifact.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(f"cannot use the cache folder {cache_dir}: {error.strerror or error}") from error
    return str(cache_dir / f"litert-{version}-{digest[:24]}.xnnpack")
