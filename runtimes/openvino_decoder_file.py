"""What a decoder's ``.xml`` file says of itself, read without the engine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from .artifact_file import check_artifact_file

KIND = "edgescribe decoder 1"
_PROPERTIES = re.compile(r"<edgescribe>(.*?)</edgescribe>", re.DOTALL)
_PROPERTY = re.compile(r'<(\w+) value="([^"]*)"')


@dataclass(frozen=True)
class DecoderFile:
    """Sizes of an artifact: the most tokens it takes, V, layers, and of its cache the heads and their width.

    ``hidden``, ``neurons`` and ``heads`` are the model's widths; ``file_bytes`` what its files hold.
    """

    precision: str
    context: int
    vocabulary: int
    layers: int
    cache_heads: int
    cache_width: int
    hidden: int
    neurons: int
    heads: int
    file_bytes: int

    @property
    def cache_bits(self) -> int:
        """Bits of a number in the cache: float32 where weights are, or float16."""
        return 32 if self.precision == "fp32" else 16

    @property
    def token_bytes(self) -> int:
        """Bytes that a token takes in the cache."""
        return 2 * self.cache_bits // 8 * self.layers * self.cache_heads * self.cache_width


def read_decoder_file(path: Path) -> DecoderFile:
    """Read what the exporter wrote.

    Raises:
        BundleError: the file, or its ``.bin``, is missing, damaged or not a decoder's.
    """
    check_artifact_file(path, ".xml", "OpenVINO")
    try:
        content = path.read_text(encoding="utf-8")
        stored = path.with_suffix(".bin").stat().st_size
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not an OpenVINO model: {error}; copy the bundle anew") from error
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}; copy the bundle anew") from error
    found = _PROPERTIES.search(content)
    if "<net" not in content[:1024] or found is None:
        raise BundleError(f"{path} is not a decoder's OpenVINO model, or it is damaged; copy the bundle anew")
    properties = dict(_PROPERTY.findall(found[1]))
    if properties.get("kind") != KIND:
        raise BundleError(f"{path} is not a decoder made by this version of edgescribe: export it anew")
    try:
        sizes = {name: int(properties[name]) for name in DecoderFile.__dataclass_fields__ if name not in _ELSEWHERE}
        precision = properties["precision"]
    except (KeyError, ValueError) as error:
        raise BundleError(f"{path} does not tell its sizes ({error!r}): it is damaged, copy the bundle anew") from error
    if min(sizes.values()) < 1:
        raise BundleError(f"{path} gives itself a size below 1: it is damaged, copy the bundle anew")
    return DecoderFile(precision=precision, file_bytes=len(content.encode()) + stored, **sizes)


_ELSEWHERE = ("precision", "file_bytes")
