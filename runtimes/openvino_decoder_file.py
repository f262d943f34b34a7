"""What a decoder's ``.xml`` file says of itself, read without the engine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    properties = read_properties(path, KIND)
    try:
        total = sum(file.stat().st_size for file in (path, path.with_suffix(".bin")))
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}; copy the bundle anew") from error
    return DecoderFile(file_bytes=total, **sizes_of(DecoderFile, properties, path))


def read_properties(path: Path, kind: str) -> dict[str, str]:
    """What an ``.xml`` file of a ``kind`` says of itself, by name.

    Raises:
        BundleError: it is missing, damaged or of another kind.
    """
    check_artifact_file(path, ".xml", "OpenVINO")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not an OpenVINO model: {error}; copy the bundle anew") from error
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}; copy the bundle anew") from error
    found = _PROPERTIES.search(content)
    what = kind.removeprefix("edgescribe ").rsplit(" ", 1)[0]
    if "<net" not in content[:1024] or found is None:
        raise BundleError(f"{path} is not a {what}'s OpenVINO model, or it is damaged; copy the bundle anew")
    properties = dict(_PROPERTY.findall(found[1]))
    if properties.get("kind") != kind:
        raise BundleError(f"{path} is no {what} made by this version of edgescribe: export it anew")
    return properties


def sizes_of(file: type[DecoderFile], properties: dict[str, str], path: Path) -> dict[str, Any]:
    """The arguments of ``file`` but ``file_bytes``, from what a file says of itself.

    Raises:
        BundleError: one is missing, or is no number above 0.
    """
    try:
        sizes = {name: int(properties[name]) for name in file.__dataclass_fields__ if name not in _ELSEWHERE}
        precision = properties["precision"]
    except (KeyError, ValueError) as error:
        raise BundleError(f"{path} does not tell its sizes ({error!r}): it is damaged, copy the bundle anew") from error
    if min(sizes.values()) < 1:
        raise BundleError(f"{path} gives itself a size below 1: it is damaged, copy the bundle anew")
    return {"precision": precision, **sizes}


_ELSEWHERE = ("precision", "file_bytes")
