"""What a decoder's ``.onnx`` file says of itself, read without the engine and without any ONNX package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from .artifact_file import check_artifact_file
from .protobuf_fields import entries

KIND = "edgescribe decoder 1"
_PROPERTIES = 14
"""Field of ModelProto."""


@dataclass(frozen=True)
class DecoderFile:
    """Sizes of an artifact: the most tokens it takes, V, layers, and of its cache the heads, their width and the bytes
    of each number (4: float32, 1: int8).

    ``hidden`` and ``neurons`` are the model's widths; ``weight_bytes`` what its weights take in memory.
    """

    precision: str
    context: int
    vocabulary: int
    layers: int
    cache_heads: int
    cache_width: int
    cache_bytes: int
    heads: int
    hidden: int
    neurons: int
    weight_bytes: int

    @property
    def token_bytes(self) -> int:
        """Bytes that a token takes in the cache."""
        return 2 * self.cache_bytes * self.layers * self.cache_heads * self.cache_width


def data_file(path: Path) -> Path:
    """Where an artifact's large constants are."""
    return path.with_name(f"{path.name}.data")


def read_decoder_file(path: Path) -> DecoderFile:
    """Read what the exporter wrote.

    Raises:
        BundleError: the file, or its data file, is missing, damaged or not a decoder's.
    """
    precision, sizes = read_sizes(path, KIND, "a decoder", tuple(DecoderFile.__dataclass_fields__)[1:])
    check_data_file(path)
    return DecoderFile(precision=precision, **sizes)


def read_sizes(path: Path, kind: str, what: str, names: tuple[str, ...]) -> tuple[str, dict[str, int]]:
    """The precision and the sizes ``names``, each at least 1, that an ``.onnx`` file of ``kind`` tells.

    Raises:
        BundleError: the file is missing, damaged or not of that kind; ``what`` is what messages call the kind.
    """
    check_artifact_file(path, ".onnx", "ONNX Runtime")
    try:
        properties = entries(memoryview(path.read_bytes()), _PROPERTIES)
        if properties.get("kind") != kind:
            raise BundleError(f"{path} is not {what} made by this version of edgescribe: export it anew")
        sizes = {name: int(properties[name]) for name in names}
        precision = properties["precision"]
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not a readable ONNX file: {error!r}; copy the bundle anew") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; check the bundle's folder") from error
    if min(sizes.values()) < 1:
        raise BundleError(f"{path} gives itself a size below 1: it is damaged, copy the bundle anew")
    return precision, sizes


def check_data_file(path: Path) -> None:
    """Refuse an artifact without the file of its large constants.

    Raises:
        BundleError: it is not there.
    """
    data = data_file(path)
    if not data.is_file():
        raise BundleError(f"{data} is missing, which holds the weights of {path.name}; copy the bundle anew")
