"""What a decoder session in OpenVINO will take, from its file's sizes and the processor.

From what students of 2 and of 30 layers took in OpenVINO 2026.4 on x86-64, with the file's own pages let go.
"""

from __future__ import annotations

from pathlib import Path

from .decoder_contract import DecoderMemory
from .openvino_decoder_file import DecoderFile

_MIB = 1 << 20
ENGINE = 80 * _MIB
LAYER = _MIB * 3 // 2
"""Nodes of a layer, and its kernels for each number of rows."""

_WIDENED = {"w8a8-dynamic": 4.0, "w4a8-dynamic": 32 / 4.5}
"""Bytes of a weight and its scales as float32, for each that the file has."""


def memory_of(file: DecoderFile, context: int, chunk: int, most_verified: int, widened: bool) -> DecoderMemory:
    """The prediction, in bytes; ``widened``: integer weights run as float32 (:func:`widens_weights`)."""
    weights = resident_weights(file, widened)
    widest = max(4 * file.hidden, 3 * file.neurons + 2 * file.hidden)
    floats = 4 * (chunk * widest + 2 * file.vocabulary) + 2 * most_verified * file.vocabulary
    # Keys turned round for the products of several tokens come on top of the cache.
    cache = context * file.token_bytes * 5 // 4
    return DecoderMemory(weights=weights, cache=cache, scratch=4 * floats + file.layers * LAYER, engine=ENGINE)


def resident_weights(file: DecoderFile, widened: bool) -> int:
    """What of that are weights, packed as the engine runs them."""
    packed = 1.25 if file.precision == "w4a8-dynamic" else 1.0  # scales of int4 become float32
    return int(file.file_bytes * (_WIDENED.get(file.precision, 1.0) if widened else packed))


def widens_weights(root: Path = Path("/")) -> bool:
    """Whether this processor is one for which the CPU plugin has no products with integer weights: Arm's without dot
    products. ``root`` is where the machine's /proc and /sys lie."""
    from ..device_profiles.int8_gain import has_dot_product
    from ..device_profiles.probe_cpu import probe_cpu

    cpu = probe_cpu(root)
    return cpu.isa == "aarch64" and not has_dot_product(
        feature for cluster in cpu.clusters.values() for feature in cluster.features
    )
