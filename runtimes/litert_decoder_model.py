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
from .mapped_weights import handing_back
from .spare_memory import mapped_at, release_freed, release_pages

IN_MEMORY = ":memory"
"""LiteRT's name for packing weights into shared memory, without a file."""

_MOST_FREED = 8 << 20
"""Bytes that may lie freed in the heap while caches grow: pieces too small for what comes, so that without giving them
back it would grow to twice its content."""

SPARE_DISK = 32 << 20
"""Bytes of disk that writing packed weights leaves free, at least."""

_ALIGNMENT, _READ_BEYOND = 64, 128
"""Bytes: where memory that the engine is given must begin, and how far its kernels may read behind the end."""

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
        self._arguments: dict[Signature, Arguments] = {}

    def bound(self) -> dict[str, Any]:
        """The buffers that a run reads and writes."""
        return self.buffers

    def arguments(self, signature: Signature) -> Arguments:
        """What a signature is called with, put together once for many steps."""
        found = self._arguments.get(signature)
        if found is None or found.made_for is not signature.results:
            found = self._arguments[signature] = signature.arguments(self.bound())
        return found

    def changed(self) -> None:
        """To be called where a buffer is put in another's place."""
        self._arguments.clear()

    def free(self) -> None:
        """Give the memory back."""
        self.changed()
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
                self._feed(signature, tokens[:taken], start, size, caches.room)
                signature.run(caches.arguments(signature))
                return taken, self._logits(signature, size, taken, wanted)
            except (RuntimeError, ValueError) as error:
                raise self._failed("failed to run", error) from error

    def step(self, caches: Caches, token: int, start: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Append one token behind ``start`` others; its logits ``[V]``, in ``out`` where that is given.

        Raises:
            EngineError: the engine failed.
        """
        with self._lock:
            try:
                signature = self._signatures[1]
                self._make_room(caches, signature, start, 1)
                self._feed(signature, (token,), start, 1, caches.room)
                signature.run(caches.arguments(signature))
            except (RuntimeError, ValueError) as error:
                raise self._failed("failed to run", error) from error
            logits: NDArray[np.float32] = signature.results["logits"][0]
            if out is None:
                return logits.copy()
            out[:] = logits
            return out

    def _feed(
        self, signature: Signature, tokens: NDArray[np.int32] | tuple[int, ...], start: int, size: int, room: int
    ) -> None:
        fed, count = signature.fed, len(tokens)
        fed["tokens"][:count] = tokens
        fed["key_start"][2] = fed["value_start"][3] = start
        fed["tokens"][count:] = 0
        if "positions" in fed:
            fed["positions"][:] = start if size == 1 else np.arange(start, start + size)
            fed["positions"][count:] = 0  # what fills up may stand beyond the context
        if "last" in fed:
            fed["last"][0] = count - 1
        if signature.takes("mask"):
            signature.write("mask", windows(self._visible[self._most - 1 - start :], size, room))

    def _logits(self, signature: Signature, size: int, count: int, wanted: int) -> NDArray[np.float32] | None:
        """Of a run of ``count`` tokens and filling: the logits of the last ``wanted``."""
        if not wanted:
            return None
        rows = 1 if size in self.file.last_only else count
        return signature.results["logits"][rows - wanted : rows].copy()

    def _make_room(self, caches: Caches, signature: Signature, start: int, size: int) -> None:
        """Give the session's caches and the signature the same room, enough for what is to be appended."""
        room = caches.room
        if not start or start + size > room or room != signature.room:
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
        freed, before = 0, caches.room
        empty: dict[tuple[int, ...], NDArray[np.float32]] = {}  # of each shape, where there is nothing to keep
        caches.changed()
        for name, shape in self.file.cache_shapes(signature.room).items():
            array = content(name)
            length = array.shape[room_axis(name)]
            if length:
                whole = np.zeros(shape, np.float32)
                whole[kept(name, length)] = array
            else:
                if shape not in empty:
                    empty[shape] = np.zeros(shape, np.float32)
                whole = empty[shape]
            if name in caches.buffers:
                caches.buffers.pop(name).destroy()
            caches.buffers[name] = signature.new_buffer(name)
            caches.buffers[name].write(whole)
            freed += array.nbytes
            if freed > _MOST_FREED:
                release_freed()
                freed = 0
        caches.room = signature.room
        # What a shorter text leaves free is not worth giving back and asking for again, unless it is much.
        if caches.room > before or self.file.cache_bytes(before) - self.file.cache_bytes(caches.room) > _MOST_FREED:
            release_freed()
        if signature.read_file:
            release_pages(self._mapped)
            signature.read_file = False

    def _read(self, caches: Caches, name: str, length: int) -> NDArray[np.generic]:
        """One cache's first ``length`` tokens, in an array that may be larger."""
        if length == 0:
            return np.zeros(self.file.cache_shape(name, 0), np.float32)
        shape = self.file.cache_shape(name, caches.room)
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


class Arguments:
    """What a signature is called with: buffers in the order of its inputs and outputs.

    Attributes:
        made_for: the signature's ``results`` at that time, which are others once it was resized.
    """

    def __init__(self, inputs: list[Any], outputs: list[Any], made_for: object) -> None:
        self.inputs, self.outputs = [Handle(each) for each in inputs], [Handle(each) for each in outputs]
        self.made_for = made_for


class Handle:
    """What the engine is given of a buffer, read once: its own buffers look at themselves anew at every call."""

    __slots__ = ("capsule",)

    def __init__(self, buffer: Any) -> None:
        self.capsule = buffer.capsule


class Signature:
    """A signature with buffers for its small inputs and its results.

    Those of one axis and the results are memory of ours that the engine reads and writes, so that nothing needs to be
    handed over. ``kept``: the inputs and outputs that are bound to a session's buffers instead.

    Attributes:
        fed: int32 arrays that a run reads, by name: the inputs of one axis.
        results: float32 arrays that a run writes, by name; whoever keeps one copies it.
        read_file: whether it was resized, for which the engine reads the file's constants again.
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
        self._written: dict[str, Any] = {}
        self.fed: dict[str, NDArray[np.int32]] = {}
        self.results: dict[str, NDArray[np.float32]] = {}
        self.read_file = False
        self.room = self.source_room = 0

    def new_buffer(self, name: str) -> Any:
        """Memory for an input."""
        return self._compiled.create_input_buffer_by_name(self._key, name)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Have it work on inputs of other shapes; of ``shapes`` what it does not take is passed over."""
        self.read_file = True
        for place, name in enumerate(self._inputs):
            shape = shapes.get(name)
            if shape is not None and self._shapes.get(name) != shape:
                # By its place: for a name the engine goes through those of all signatures.
                self._compiled.resize_input_tensor(place, shape, self._index, strict=False)
                self._shapes[name] = shape
        self._small, self.fed = {}, {}
        for name in self._inputs:
            if name not in self._kept:
                buffer = self.new_buffer(name)
                self._small[name] = buffer
                if len(buffer.get_tensor_details()["shape"]) == 1:
                    self.fed[name], self._small[name] = memory_for(buffer, np.int32)
        self._written, self.results = {}, {}
        for name in self._outputs:
            if name not in self._kept:
                buffer = self._compiled.create_output_buffer_by_name(self._key, name)
                self.results[name], self._written[name] = memory_for(buffer, np.float32)

    def takes(self, name: str) -> bool:
        """Whether it has a small input of this name."""
        return name in self._small

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Hand a small input over that is not one of ``fed``."""
        self._small[name].write(values)

    def arguments(self, bound: Mapping[str, Any]) -> Arguments:
        """What a run on a session's buffers is called with, until it is resized."""
        inputs = [bound.get(name) or self._small[name] for name in self._inputs]
        outputs = [bound.get(name) or self._written[name] for name in self._outputs]
        return Arguments(inputs, outputs, self.results)

    def run(self, arguments: Arguments) -> None:
        """Run on what was fed and written."""
        self._compiled.run_by_index(self._index, arguments.inputs, arguments.outputs)


def memory_for(buffer: Any, dtype: type[np.generic]) -> tuple[NDArray[Any], Any]:
    """Memory of ours in place of an engine's buffer, which is freed: as an array, and as the engine's buffer on it."""
    shape = tuple(buffer.get_tensor_details()["shape"])
    count = math.prod(shape)
    held = np.zeros(count + (_ALIGNMENT + _READ_BEYOND) // 4, dtype)
    begin = -held.ctypes.data % _ALIGNMENT // 4
    array = held[begin : begin + count]
    of_ours = type(buffer).create_from_host_memory(array)
    buffer.destroy()
    return array.reshape(shape), of_ours


def windows(line: NDArray[Any], size: int, room: int) -> NDArray[Any]:
    """Rows of ``room`` elements of 4 bytes: row t is what a token sees that stands t places behind the first one, and
    begins t elements before ``line``, which is part of a longer one."""
    return line[:room] if size == 1 else np.lib.stride_tricks.as_strided(line, (size, room), (-4, 4))


def kept(name: str, length: int) -> tuple[slice, ...]:
    """The part of a cache that holds its first ``length`` tokens."""
    return (*(slice(None),) * room_axis(name), slice(0, length))


@contextlib.contextmanager
def packed_weights(cache_dir: Path | None, artifact: Path, version: str) -> Iterator[str]:
    """Where the engine shall keep packed weights: a file named after the artifact's content and the engine's version.

    Where there is none yet, the engine writes one of another name meanwhile, which gets its name at the end: no other
    process ever maps half a file. Without room for it on the disk weights are packed in memory, since the engine ends
    the process where writing fails.
    Meanwhile pages of the artifact are let go of once they were read.

    Raises:
        EngineError: the folder cannot be used.
    """
    if cache_dir is None:
        with handing_back([artifact]):
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
        with handing_back([artifact]):
            yield str(path) if made else IN_MEMORY
        return
    try:
        with handing_back([artifact]):
            yield str(unfinished)
        with contextlib.suppress(FileNotFoundError):
            unfinished.replace(path)
    except OSError as error:
        raise EngineError(f"cannot use the cache folder {cache_dir}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
