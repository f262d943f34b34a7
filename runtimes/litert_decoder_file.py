"""What a LiteRT decoder's ``.tflite`` holds and will take, read without the engine."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BundleError
from .artifact_file import check_artifact_file
from .decoder_contract import DecoderMemory
from .tflite_file import FLOAT32, INT32, TfliteSignature, read_signatures

_SIGNATURE = re.compile(r"decode_([1-9][0-9]{0,5})")
_CACHE = re.compile(r"(?:key|value)_[0-9]+")

OVERHEAD = 8
"""What a run costs beside its tokens, in the time of so many of them (SmolLM2-135M on x86-64: 7 to 9)."""


@dataclass(frozen=True)
class DecoderFile:
    """A decoder's artifact.

    Attributes:
        path: where it is.
        vocabulary: number of tokens V.
        room: tokens C that the caches hold.
        caches: shape of each cache by name: keys ``[1, K, C, D]``, values ``[1, K, D, C]``.
        sizes: numbers of tokens that one run appends, ascending, the first being 1.
        last_only: those of them that give the logits of one token alone.
    """

    path: Path
    vocabulary: int
    room: int
    caches: dict[str, tuple[int, ...]]
    sizes: tuple[int, ...]
    last_only: frozenset[int]

    def with_room(self, room: int) -> DecoderFile:
        """The same with caches for fewer tokens, which the engine can be told, and without runs of more than that."""
        caches = {name: _with_room(name, shape, room) for name, shape in self.caches.items()}
        sizes = tuple(size for size in self.sizes if size <= room)
        return replace(self, room=room, caches=caches, sizes=sizes)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all caches."""
        return sum(4 * math.prod(shape) for shape in self.caches.values())

    def size_of_run(self, left: int, start: int, every: bool) -> int:
        """The run to make next so that ``left`` tokens from ``start`` on take the least time in all.

        ``every``: whether the logits of each token are wanted. A run that would reach beyond the caches is never
        chosen, even where what reaches beyond is only filling: the engine would move all of it back.
        """
        free = self.room - start
        sizes = tuple(size for size in self.sizes if size <= free and not (every and size in self.last_only))
        return _cheapest(left, sizes)[1]


def _with_room(name: str, shape: tuple[int, ...], room: int) -> tuple[int, ...]:
    axis = room_axis(name)
    return (*shape[:axis], room, *shape[axis + 1 :])


def room_axis(name: str) -> int:
    """Which axis of a cache, by its name, counts tokens."""
    return 2 if name.startswith("key") else 3


@functools.cache
def _cheapest(left: int, sizes: tuple[int, ...]) -> tuple[float, int]:
    """Time for ``left`` tokens, and the first run's size."""
    if left <= 0:
        return 0.0, 0
    best = (math.inf, 0)
    for number, size in enumerate(sizes, 1):
        # Runs in descending order of size: what one leaves is seen to by sizes no larger.
        best = min(best, (size + OVERHEAD + _cheapest(left - size, sizes[:number])[0], size))
    return best


def read_decoder_file(path: Path) -> DecoderFile:
    """Look through an artifact.

    Raises:
        BundleError: it is not a .tflite, damaged, or not a decoder of this runtime.
    """
    check_artifact_file(path, ".tflite", "LiteRT")
    found = {
        int(match[1]): signature
        for key, signature in read_signatures(path).items()
        if (match := _SIGNATURE.fullmatch(key))
    }
    if 1 not in found:
        raise BundleError(f"{path} is not a decoder for LiteRT: it has no signature decode_1; make the bundle anew")
    caches = {name: shape for name, (_, shape) in found[1].inputs.items() if _CACHE.fullmatch(name)}
    mask = found[1].inputs.get("mask", (FLOAT32, (0,)))[1]
    logits = found[1].outputs.get("logits", (FLOAT32, (0,)))[1]
    for tokens, signature in found.items():
        if not _is_whole(tokens, signature, caches, mask[-1], logits[-1]):
            raise BundleError(
                f"{path}: its signature decode_{tokens} does not take and give what a decoder's does; "
                "make the bundle anew"
            )
    last_only = frozenset(tokens for tokens, signature in found.items() if "last" in signature.inputs)
    return DecoderFile(path, logits[-1], mask[-1], caches, tuple(sorted(found)), last_only)


def _is_whole(
    tokens: int, signature: TfliteSignature, caches: dict[str, tuple[int, ...]], room: int, vocabulary: int
) -> bool:
    held = {name: (FLOAT32, shape) for name, shape in caches.items()}
    small = {name: tensor for name, tensor in signature.inputs.items() if name not in held}
    wanted = {
        "tokens": (INT32, (tokens,)),
        "positions": (INT32, (tokens,)),
        "mask": (FLOAT32, (1, 1, tokens, room)),
        "key_start": (INT32, (4,)),
        "value_start": (INT32, (4,)),
    }
    if "last" in small:
        wanted["last"] = (INT32, (1,))
    results = {"logits": (FLOAT32, (1 if "last" in small else tokens, vocabulary)), **held}
    shapes = all(len(shape) == 4 and shape[room_axis(name)] == room for name, shape in caches.items())
    return (
        bool(held)
        and shapes
        and signature.inputs == {**small, **held}
        and small == wanted
        and signature.outputs == results
    )


_LIBRARIES = 45 << 20
"""Bytes that Python, numpy and the engine's libraries take: measured with LiteRT 2.3 on x86-64."""


def memory_of(file: DecoderFile) -> DecoderMemory:
    """What a session takes, in bytes."""
    return DecoderMemory(file.path.stat().st_size, file.cache_bytes, 0, _LIBRARIES)
