"""What a LiteRT decoder's ``.tflite`` holds and will take, read without the engine."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from .artifact_file import check_artifact_file
from .decoder_contract import DecoderMemory
from .tflite_file import FLOAT32, INT32, TfliteSignature, read_signatures

ROOM_STEP = 64
"""Caches have room for a multiple of so many tokens, or of a larger power of two where they are large."""

OVERHEAD = 14
"""What a run costs beside its tokens, in the time of so many of them (SmolLM2-135M on x86-64)."""

_SIGNATURE = re.compile(r"decode_([1-9][0-9]{0,5})_of_([1-9][0-9]{0,7})")
_CACHE = re.compile(r"(?:key|value)_[0-9]+")


@dataclass(frozen=True)
class DecoderFile:
    """A decoder's artifact.

    Attributes:
        path: where it is.
        vocabulary: number of tokens V.
        context: the most tokens that its caches can hold.
        caches: shape of each cache by name, as in the file: keys ``[1, K, room, D]``, values ``[1, K, D, room]``. The
            engine can be told another room.
        sizes: numbers of tokens that one run appends, ascending, the first being 1.
        last_only: those of them that give the logits of one token alone.
    """

    path: Path
    vocabulary: int
    context: int
    caches: dict[str, tuple[int, ...]]
    sizes: tuple[int, ...]
    last_only: frozenset[int]

    @property
    def kept(self) -> frozenset[str]:
        """Names of inputs and outputs that are in a session's own buffers."""
        return frozenset(self.caches)

    def signature(self, size: int) -> str:
        """Name of the signature that appends so many tokens."""
        return f"decode_{size}_of_{self.context}"

    def cache_shapes(self, room: int) -> dict[str, tuple[int, ...]]:
        """Shapes of caches with room for so many tokens."""
        return {name: self.cache_shape(name, room) for name in self.caches}

    def cache_shape(self, name: str, room: int) -> tuple[int, ...]:
        """Shape of one of them."""
        shape, axis = self.caches[name], room_axis(name)
        return (*shape[:axis], room, *shape[axis + 1 :])

    def cache_bytes(self, room: int) -> int:
        """Bytes of all caches with room for so many tokens."""
        return sum(4 * math.prod(shape) for shape in self.cache_shapes(room).values())

    def size_of_run(self, left: int, free: int, every: bool) -> int:
        """The run to make next so that ``left`` tokens take the least time in all.

        ``free``: the tokens that there is room for. A run that would reach beyond them is never chosen, even where
        what reaches beyond is only filling: the engine would move all of it back. ``every``: whether the logits of
        each token are wanted.
        """
        sizes = tuple(size for size in self.sizes if size <= free and not (every and size in self.last_only))
        return _cheapest(left, sizes)[1]


def room_axis(name: str) -> int:
    """Which axis of a cache, by its name, counts tokens."""
    return 2 if name.startswith("key") else 3


def room_for(tokens: int) -> int:
    """The room that caches of so many tokens have: less than an eighth is spare, or less than a step."""
    step = max(ROOM_STEP, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // step) * step


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


Tensors = Mapping[str, tuple[int, tuple[int, ...]]]
"""The schema's type number and the shape by name."""


def read_decoder_file(path: Path) -> DecoderFile:
    """Look through an artifact.

    Raises:
        BundleError: it is not a .tflite, damaged, or not a decoder of this runtime.
    """
    check_artifact_file(path, ".tflite", "LiteRT")
    return decoder_of(path, read_signatures(path), {})


def decoder_of(path: Path, signatures: Mapping[str, TfliteSignature], source: Tensors) -> DecoderFile:
    """What a file's signatures tell of its decoder, which takes ``source`` beside what decoders take.

    Raises:
        BundleError: it has none, or one that takes or gives something else.
    """
    found: dict[int, TfliteSignature] = {}
    contexts = set()
    for key, signature in signatures.items():
        if match := _SIGNATURE.fullmatch(key):
            found[int(match[1])] = signature
            contexts.add(int(match[2]))
    if 1 not in found or len(contexts) > 1:
        raise BundleError(
            f"{path} is not a decoder for LiteRT: it has no signature decode_1_of_<context>; make the bundle anew"
        )
    caches = {name: shape for name, (_, shape) in found[1].inputs.items() if _CACHE.fullmatch(name)}
    vocabulary = found[1].outputs.get("logits", (FLOAT32, (0,)))[1][-1:]
    for tokens, signature in found.items():
        if not _is_whole(tokens, signature, caches, vocabulary, source):
            raise BundleError(
                f"{path}: its signature for {tokens} tokens does not take and give what a decoder's does; "
                "make the bundle anew"
            )
    last_only = frozenset(tokens for tokens, signature in found.items() if "last" in signature.inputs)
    return DecoderFile(path, vocabulary[0], contexts.pop(), caches, tuple(sorted(found)), last_only)


def _is_whole(
    tokens: int,
    signature: TfliteSignature,
    caches: Mapping[str, tuple[int, ...]],
    vocabulary: tuple[int, ...],
    source: Tensors,
) -> bool:
    """Whether a signature takes and gives what is expected; ``vocabulary`` is its size, if there is one."""
    rooms = {shape[room_axis(name)] for name, shape in caches.items() if len(shape) == 4}
    if len(rooms) != 1 or len(vocabulary) != 1 or any(len(shape) != 4 for shape in caches.values()):
        return False
    (room,) = rooms
    held = {name: (FLOAT32, shape) for name, shape in caches.items()}
    always: Tensors = {"tokens": (INT32, (tokens,)), "key_start": (INT32, (4,)), "value_start": (INT32, (4,)), **source}
    perhaps: Tensors = {
        "positions": (INT32, (tokens,)),
        "last": (INT32, (1,)),
        "mask": (FLOAT32, (1, 1, tokens, room)),
        **({"distances": (INT32, (tokens, room))} if source else {}),
    }
    present = {name: tensor for name, tensor in perhaps.items() if name in signature.inputs}
    masked = len({"mask", "distances"} & present.keys()) == 1
    results = {"logits": (FLOAT32, (1 if "last" in present else tokens, *vocabulary)), **held}
    return masked and signature.inputs == {**always, **present, **held} and signature.outputs == results


_LIBRARIES = 48 << 20
_LAYER = 200 << 10
_PACKING = 0.2
"""What is predicted by, measured with LiteRT 2.3 on x86-64: bytes that Python, numpy and the engine's libraries take;
the engine's own of one layer in one signature; what packing needs beside the packed weights, as a share of these."""


def memory_of(file: DecoderFile, context: int) -> DecoderMemory:
    """What a session takes whose caches have grown to ``context`` tokens, in bytes.

    On SmolLM2-135M in int4 and int8, at 512 and 2,048 tokens, what was taken without a cache folder is within 2 % of
    it; with packed weights from one, 5 to 10 % less is taken.
    """
    room = room_for(context)
    weights = file.path.stat().st_size
    rows = sum(1 if size in file.last_only else size for size in file.sizes)
    objects = _LAYER * len(file.caches) // 2 * len(file.sizes)
    activations = 4 * file.sizes[-1] * (16 * room + 16384)
    scratch = objects + activations + 4 * rows * file.vocabulary + int(_PACKING * weights)
    return DecoderMemory(weights, file.cache_bytes(room), scratch, _LIBRARIES)
