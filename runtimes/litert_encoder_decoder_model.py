"""An encoder-decoder's ``.tflite`` in LiteRT: sources and KV caches that stay in the engine's memory.

A source's keys and values are what the encoder's signature writes and the decoder's read, in buffers that forks share.
As with caches, all signatures are resized for the tokens that there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine_messages import without_info_lines
from .litert_decoder_file import ROOM_STEP, room_for
from .litert_decoder_model import HIDDEN, IN_MEMORY, UNRELATED, Caches, DecoderModel, Signature, windows
from .litert_encoder_decoder_file import EncoderDecoderFile
from .spare_memory import mapped_at, release_freed, release_pages

_LARGE = 64 << 20
"""Bytes of packed weights in a file from which on only one half's are kept resident at a time."""


class Source:
    """A source's keys, values and mask in the engine's buffers by name, for ``users`` sessions."""

    def __init__(self, room: int, buffers: dict[str, Any]) -> None:
        self.room, self.buffers, self.users = room, buffers, 1


class TargetCaches(Caches):
    """A session's KV cache and the source that it writes about."""

    def __init__(self) -> None:
        super().__init__()
        self.source: Source | None = None

    def bound(self) -> dict[str, Any]:
        """See Caches."""
        return self.buffers if self.source is None else {**self.source.buffers, **self.buffers}

    def free(self) -> None:
        """See Caches."""
        super().free()
        self.share(None)

    def share(self, source: Source | None) -> None:
        """Take a source in place of the one there is, which is freed with its last user."""
        if source is self.source:
            return
        before, self.source = self.source, source
        self.changed()
        if source is not None:
            source.users += 1
        if before is not None:
            before.users -= 1
            if before.users == 0:
                for buffer in before.buffers.values():
                    buffer.destroy()


class EncoderDecoderModel(DecoderModel):
    """The engine's model, shared by a session and its forks, which take turns.

    Args:
        module, file, context, threads, packed: as DecoderModel's; ``context`` counts the target's tokens.

    Raises:
        EngineError: the engine refuses the artifact.
    """

    file: EncoderDecoderFile

    def __init__(self, module: Any, file: EncoderDecoderFile, context: int, threads: int, packed: str) -> None:
        super().__init__(module, file, context, threads, packed)
        with self._calling("refuses"):
            names = self._compiled.get_signature_list()[file.encoder]
            self._encoder: Signature | None = Signature(self._compiled, file.encoder, names, file.kept)
        # How far each place lies behind a token, from the furthest on; then what lies before it.
        behind = np.arange(self._most - 1, -1, -1, dtype=np.int32)
        hidden = np.full(self._most, file.context, np.int32)
        self._distances = np.concatenate([np.minimum(behind, file.context - 1), hidden])
        self._packed = packed
        self._packed_at: list[tuple[int, int]] = []

    def settle(self) -> None:
        """See DecoderModel; to be called before a new file of packed weights gets its name."""
        super().settle()
        packed = [] if self._packed == IN_MEMORY else mapped_at(Path(self._packed))
        self._packed_at = packed if sum(size for _, size in packed) >= _LARGE else []
        release_pages(self._packed_at)

    def _change_halves(self) -> None:
        """Encoder and decoder take turns: let go of what the one that has run read of files.

        That is rows of embeddings and, in a large model, packed weights. They are read again from the page cache, in
        a few milliseconds.
        """
        release_pages([*self._mapped, *self._packed_at])

    def join(self) -> TargetCaches:
        """See DecoderModel."""
        super().join()
        return TargetCaches()

    def _close(self) -> None:
        self._encoder, self._packed_at = None, []
        super()._close()

    # The source
    def read_source(self, caches: TargetCaches, tokens: NDArray[np.int32]) -> None:
        """Read a source for one session alone.

        Raises:
            EngineError: the engine failed; the session then has no source.
        """
        count, room = len(tokens), room_for(len(tokens))
        with self._lock:
            self._change_halves()
            try:
                source = self._own_source(caches, room)
                encoder = self._encoder
                if encoder is None:
                    raise ValueError("its last session was closed")
                if encoder.source_room != room:
                    shapes = {"source_tokens": (room,), "source_positions": (room,), "offsets": (room, room)}
                    with without_info_lines(*UNRELATED):
                        encoder.resize({**shapes, "source_mask": (1, 1, 1, room)})
                    encoder.source_room = room
                mask = np.zeros(room, np.float32)
                mask[count:] = HIDDEN
                source.buffers["source_mask"].write(mask)
                self._feed_source(encoder, tokens, room)
                encoder.run(encoder.arguments(source.buffers))
                self._change_halves()
            except (RuntimeError, ValueError) as error:
                caches.share(None)
                raise self._failed("failed to run", error) from error

    def _own_source(self, caches: TargetCaches, room: int) -> Source:
        """Buffers for a source that no other session reads."""
        source = caches.source
        if source is not None and source.users == 1 and source.room == room:
            return source
        caches.share(None)  # before the next one takes memory
        release_freed()
        signature = self._signatures[1]
        self._resize(signature, 1, signature.room or ROOM_STEP, room)
        caches.changed()
        caches.source = Source(room, {name: signature.new_buffer(name) for name in (*self.file.sources, "source_mask")})
        return caches.source

    def _feed_source(self, encoder: Signature, tokens: NDArray[np.int32], room: int) -> None:
        count, context = len(tokens), self.file.source_context
        places = np.arange(room, dtype=np.int32)
        # Row i of the offsets is what a token at i sees: it begins i elements earlier.
        line = np.clip(np.arange(1 - room, room, dtype=np.int32) + context - 1, 0, 2 * context - 2)
        offsets = np.lib.stride_tricks.as_strided(line[room - 1 :], (room, room), (-4, 4)).copy()
        offsets[:, count:] = 2 * context - 1
        feeds = {
            "source_tokens": np.concatenate([tokens, np.zeros(room - count, np.int32)]),
            "source_positions": np.minimum(places, context - 1),
            "offsets": offsets,
        }
        for name, array in feeds.items():
            if name in encoder.fed:
                encoder.fed[name][:] = array
            elif encoder.takes(name):
                encoder.write(name, array)

    # The target
    def _fit(self, caches: Caches, signature: Signature, size: int, room: int) -> None:
        source = caches.source if isinstance(caches, TargetCaches) else None
        self._resize(signature, size, room, source.room if source is not None else ROOM_STEP)

    def _resize(self, signature: Signature, size: int, room: int, source_room: int) -> None:
        if (room, source_room) == (signature.room, signature.source_room):
            return
        with without_info_lines(*UNRELATED):
            signature.resize(
                {
                    "mask": (1, 1, size, room),
                    "distances": (size, room),
                    "source_mask": (1, 1, 1, source_room),
                    **self.file.cache_shapes(room),
                    **self.file.source_shapes(source_room),
                }
            )
        signature.room, signature.source_room = room, source_room

    def _feed(
        self, signature: Signature, tokens: NDArray[np.int32] | tuple[int, ...], start: int, size: int, room: int
    ) -> None:
        super()._feed(signature, tokens, start, size, room)
        if signature.takes("distances"):
            signature.write("distances", windows(self._distances[self._most - 1 - start :], size, room))

    def take(self, caches: TargetCaches, other: TargetCaches, length: int) -> None:
        """Have a session share another one's source, and copy the first ``length`` tokens of its caches.

        Raises:
            EngineError: the engine failed.
        """
        with self._lock:
            try:
                caches.share(other.source)
                if not length:
                    return
                if caches.room == other.room:
                    for name in self.file.caches:
                        caches.buffers[name].write(self._read(other, name, other.room))
                    return
                signature = self._signatures[1]
                self._fit(caches, signature, 1, max(other.room, signature.room))
                self._replace(caches, signature, lambda name: self._read(other, name, length))
            except (RuntimeError, ValueError) as error:
                raise self._failed("cannot copy the KV cache of", error) from error
