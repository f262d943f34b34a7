"""A decoder's ``.tflite`` in LiteRT: running its signatures on KV caches that stay in the engine's memory.

A step reads all the room that the caches have, used or not. So they begin small, and both they and the signatures'
inputs are resized as a text grows, by :func:`~edgescribe.runtimes.litert_decoder_file.room_for`. For the engine that is
a matter of milliseconds: weights are not packed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .engine_messages import drop_native_lines_at_exit, without_info_lines
from .litert_decoder_file import DecoderFile, room_axis, room_for
from .spare_memory import mapped_at, release_freed, release_pages

IN_MEMORY = ":memory"
"""LiteRT's name for packing weights into shared memory, without a file."""

_MOST_FREED = 8 << 20
"""Bytes that may lie freed in the heap while caches grow: pieces too small for what comes, so that without giving them
back it would grow to twice its content."""

SPARE_DISK = 32 << 20
"""Bytes of disk that writing packed weights leaves free, at least."""

HIDDEN = np.float32(-1e9)
"""Added to the scores of what a token must not see: its exponential is exactly 0 in float32."""

UNRELATED = (
    "WARNING: [npu_registry",
    "WARNING: [gpu_registry",
    "ERROR: [litert_dispatch",
    "ERROR: [dispatch_delegate",
)
"""What the engine says about accelerators that were not asked for."""


class Caches:
    """A session's KV cache: the engine's buffers by name, with room for so many tokens (0: there are none yet)."""

    def __init__(self) -> None:
        self.room = 0
        self.buffers: dict[str, Any] = {}

    def bound(self) -> dict[str, Any]:
        """The buffers that a run reads and writes."""
        return self.buffers

    def free(self) -> None:
        """Give the memory back."""
        for buffer in self.buffers.values():
            buffer.destroy()
        self.buffers.clear()
        self.room = 0


class DecoderModel:
    """The engine's model, shared by a session and its forks, which take turns.

    Args:
        module: ``ai_edge_litert.compiled_model``.
        file: what the artifact holds.
        context: the most tokens of a session.
        threads: the engine's threads.
        packed: path of the file of packed weights, or :data:`IN_MEMORY`.

    Raises:
        EngineError: the engine refuses the artifact.
    """

    def __init__(self, module: Any, file: DecoderFile, context: int, threads: int, packed: str) -> None:
        self.file, self.context = file, context
        self._lock = threading.RLock()  # a session may be thrown away while another one runs
        self._sessions = 0
        self._most = room_for(context)
        self._mapped: list[tuple[int, int]] = []
        self._visible = np.zeros(2 * self._most, np.float32)
        self._visible[self._most :] = HIDDEN
        drop_native_lines_at_exit()
        with self._calling("refuses"):
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
            self._signatures = {
                size: Signature(self._compiled, key, names[key], file.kept)
                for size, key in ((size, file.signature(size)) for size in file.sizes)
            }

    @contextlib.contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        """What the engine says is kept back, and its failures become an EngineError."""
        try:
            with without_info_lines(*UNRELATED):
                yield
        except (RuntimeError, ValueError) as error:
            raise self._failed(what, error) from error

    def _failed(self, what: str, error: Exception) -> EngineError:
        said = " ".join(str(error).split())[-300:] or type(error).__name__
        return EngineError(f"LiteRT {what} {self.file.path}: {said}")

    def settle(self) -> None:
        """Once all has run: give back what only start-up needed, code and constants that were packed."""
        self._mapped = mapped_at(self.file.path)
        release_pages(self._mapped)
        release_freed()

    def join(self) -> Caches:
        """The caches of one more session."""
        with self._lock:
            self._sessions += 1
        return Caches()

    def leave(self, caches: Caches) -> None:
        """Free a session's caches, and with the last session's the model."""
        with self._lock:
            caches.free()
            self._sessions -= 1
            if self._sessions == 0:
                self._mapped = []
                with without_info_lines(*UNRELATED):
                    self._close()

    def _close(self) -> None:
        self._signatures.clear()
        self._compiled = None

    def run(
        self, caches: Caches, tokens: NDArray[np.int32], start: int, every: bool, last: bool
    ) -> tuple[int, NDArray[np.float32] | None]:
        """Append the first of ``tokens`` behind ``start`` others, as many as one run takes.

        Gives their number and the logits of ``every`` one of them, or of the ``last`` of all tokens, ``[n, V]``; None
        where they are not asked for.

        Raises:
            EngineError: the engine failed.
        """
        size = self.file.size_of_run(len(tokens), self._most - start, every)
        taken = min(size, len(tokens))
        wanted = taken if every else int(last and taken == len(tokens))
        with self._lock:
            try:
                signature = self._signatures[size]
                self._make_room(caches, signature, start, size)
                feeds = self._feeds(tokens[:taken], start, size, caches.room)
                signature.run(caches.bound(), feeds)
                return taken, self._logits(signature, size, taken, wanted)
            except (RuntimeError, ValueError) as error:
                raise self._failed("failed to run", error) from error

    def _feeds(self, tokens: NDArray[np.int32], start: int, size: int, room: int) -> dict[str, NDArray[Any]]:
        positions = np.arange(start, start + size, dtype=np.int32)
        filling = size - len(tokens)
        # Row t of the mask is what a token at start + t sees: it begins t elements earlier.
        mask = np.lib.stride_tricks.as_strided(self._visible[self._most - 1 - start :], (size, room), (-4, 4))
        return {
            "tokens": np.concatenate([tokens, np.zeros(filling, np.int32)]) if filling else tokens,
            "positions": np.minimum(positions, self.file.context - 1) if filling else positions,
            "mask": mask,
            "key_start": np.array([0, 0, start, 0], np.int32),
            "value_start": np.array([0, 0, 0, start], np.int32),
            "last": np.array([len(tokens) - 1], np.int32),
        }

    def _logits(self, signature: Signature, size: int, count: int, wanted: int) -> NDArray[np.float32] | None:
        """Of a run of ``count`` tokens and filling: the logits of the last ``wanted``."""
        if not wanted:
            return None
        rows = 1 if size in self.file.last_only else count
        logits: NDArray[np.float32] = signature.results["logits"].read(rows * self.file.vocabulary, np.float32)
        logits = logits.reshape(rows, self.file.vocabulary)
        return logits if wanted == rows else logits[rows - wanted :].copy()

    def _make_room(self, caches: Caches, signature: Signature, start: int, size: int) -> None:
        """Give the session's caches and the signature the same room, enough for what is to be appended."""
        room = room_for(start + size)
        if start or self._sessions > 1:
            # Sessions that take turns would resize the signatures back and forth: all take the largest room.
            room = max(room, caches.room, signature.room)
        self._fit(caches, signature, size, room)
        if room != caches.room:
            self._replace(caches, signature, lambda name: self._read(caches, name, min(start, caches.room)))

    def _fit(self, caches: Caches, signature: Signature, size: int, room: int) -> None:
        """Have a signature work on caches of this room."""
        if room != signature.room:
            with without_info_lines(*UNRELATED):
                signature.resize({"mask": (1, 1, size, room), **self.file.cache_shapes(room)})
            signature.room = room

    def _replace(self, caches: Caches, signature: Signature, content: Callable[[str], NDArray[np.generic]]) -> None:
        """New buffers for a session, with the signature's room: ``content`` of each in front, zero behind.

        One after the other, so that little is held twice. What the mask hides must be finite.
        """
        freed = 0
        for name, shape in self.file.cache_shapes(signature.room).items():
            array = content(name)
            whole = np.zeros(shape, np.float32)
            whole[kept(name, array.shape[room_axis(name)])] = array
            if name in caches.buffers:
                caches.buffers.pop(name).destroy()
            caches.buffers[name] = signature.new_buffer(name)
            caches.buffers[name].write(whole)
            freed += array.nbytes
            if freed > _MOST_FREED:
                release_freed()
                freed = 0
        release_freed()
        caches.room = signature.room
        release_pages(self._mapped)

    def _read(self, caches: Caches, name: str, length: int) -> NDArray[np.generic]:
        """One cache's first ``length`` tokens, in an array that may be larger."""
        if length == 0:
            return np.zeros(self.file.cache_shapes(0)[name], np.float32)
        shape = self.file.cache_shapes(caches.room)[name]
        whole: NDArray[np.float32] = caches.buffers[name].read(math.prod(shape), np.float32)
        return whole.reshape(shape)[kept(name, length)]

    def read(self, caches: Caches, length: int) -> dict[str, NDArray[np.generic]]:
        """Copies of a session's caches, cut to ``length`` tokens.

        Raises:
            EngineError: the engine failed.
        """
        with self._lock, self._calling("cannot read the KV cache of"):
            return {name: self._read(caches, name, length).copy() for name in self.file.caches}

    def write(self, caches: Caches, arrays: Mapping[str, NDArray[np.generic]], length: int) -> None:
        """Put ``arrays`` of :meth:`read` into a session's caches.

        Raises:
            EngineError: the engine failed.
        """
        with self._lock, self._calling("cannot write the KV cache of"):
            signature = self._signatures[1]
            self._fit(caches, signature, 1, max(room_for(length + 1), signature.room))
            self._replace(caches, signature, arrays.__getitem__)


class Signature:
    """A signature with buffers for its small inputs and its results.

    ``kept``: the inputs and outputs that are bound to a session's buffers instead.

    Attributes:
        results: the buffers of the other outputs.
        room: of the caches that it works on.
        source_room: of the source that it works on, where there is one.
    """

    def __init__(self, compiled: Any, key: str, names: Mapping[str, list[str]], kept: frozenset[str]) -> None:
        self._compiled, self._key = compiled, key
        self._index = compiled.get_signature_index(key)
        self._inputs, self._outputs = names["inputs"], names["outputs"]
        self._kept = kept
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._small: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        self.room = self.source_room = 0

    def new_buffer(self, name: str) -> Any:
        """Memory for an input."""
        return self._compiled.create_input_buffer_by_name(self._key, name)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Have it work on inputs of other shapes; of ``shapes`` what it does not take is passed over."""
        for name, shape in shapes.items():
            if name in self._inputs and self._shapes.get(name) != shape:
                self._compiled.resize_input_tensor_by_name(self._key, name, shape, strict=False)
                self._shapes[name] = shape
        self._small = {name: self.new_buffer(name) for name in self._inputs if name not in self._kept}
        self.results = {
            name: self._compiled.create_output_buffer_by_name(self._key, name)
            for name in self._outputs
            if name not in self._kept
        }

    def run(self, bound: Mapping[str, Any], feeds: Mapping[str, NDArray[Any]]) -> None:
        """Run on a session's buffers and what the small inputs are fed."""
        for name, buffer in self._small.items():
            buffer.write(feeds[name])
        inputs = [bound.get(name) or self._small[name] for name in self._inputs]
        outputs = [bound.get(name) or self.results[name] for name in self._outputs]
        self._compiled.run_by_index(self._index, inputs, outputs)


def kept(name: str, length: int) -> tuple[slice, ...]:
    """The part of a cache that holds its first ``length`` tokens."""
    return (*(slice(None),) * room_axis(name), slice(0, length))


@contextlib.contextmanager
def packed_weights(cache_dir: Path | None, artifact: Path, version: str) -> Iterator[str]:
    """Where the engine shall keep packed weights: a file named after the artifact's content and the engine's version.

    Where there is none yet, the engine writes one of another name meanwhile, which gets its name at the end: no other
    process ever maps half a file. Without room for it on the disk weights are packed in memory, since the engine ends
    the process where writing fails.

    Raises:
        EngineError: the folder cannot be used.
    """
    if cache_dir is None:
        yield IN_MEMORY
        return
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with artifact.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = cache_dir / f"litert-{version}-{digest[:24]}.xnnpack"
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        made = path.exists()
        if not made:
            unfinished.touch()
            unfinished.unlink()
        room = shutil.disk_usage(cache_dir).free > 1.5 * artifact.stat().st_size + SPARE_DISK
    except OSError as error:
        raise EngineError(f"cannot use the cache folder {cache_dir}: {error.strerror or error}") from error
    if made or not room:
        yield str(path) if made else IN_MEMORY
        return
    try:
        yield str(unfinished)
        with contextlib.suppress(FileNotFoundError):
            unfinished.replace(path)
    except OSError as error:
        raise EngineError(f"cannot use the cache folder {cache_dir}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
