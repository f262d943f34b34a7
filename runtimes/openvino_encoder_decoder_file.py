"""What an encoder-decoder's OpenVINO artifact says of itself, read without the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from .openvino_decoder_file import DecoderFile, read_properties, sizes_of

KIND = "edgescribe encoder-decoder 1"


@dataclass(frozen=True)
class EncoderDecoderFile(DecoderFile):
    """Sizes of an artifact, those of the decoder as of :class:`DecoderFile`.

    ``source_context`` is the most tokens of a source, ``source_layers`` the encoder's; ``source_heads`` and
    ``source_width`` are of the keys and values that are kept of a source. ``neurons`` and ``heads`` are the larger
    half's.
    """

    source_context: int
    source_layers: int
    source_heads: int
    source_width: int

    @property
    def cache_bits(self) -> int:
        """Bits of a number in the cache."""
        return 32

    @property
    def source_token_bytes(self) -> int:
        """Bytes that are kept of a token of the source."""
        return 2 * 4 * self.layers * self.source_heads * self.source_width


def files_of(path: Path) -> tuple[Path, Path, Path]:
    """The model that writes, the one that reads the source, and the weights of both."""
    return path, path.with_suffix(".source.xml"), path.with_suffix(".bin")


def read_encoder_decoder_file(path: Path) -> EncoderDecoderFile:
    """Read what the exporter wrote.

    Raises:
        BundleError: a file is missing, damaged or not an encoder-decoder's.
    """
    writing, reading, stored = files_of(path)
    found = [read_properties(file, KIND) for file in (writing, reading)]
    sizes = [{name: value for name, value in each.items() if name != "heights"} for each in found]
    if sizes[0] != sizes[1]:
        raise BundleError(f"{writing} and {reading} are not of one export: copy the bundle anew")
    try:
        total = sum(file.stat().st_size for file in (writing, reading, stored))
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}; copy the bundle anew") from error
    return EncoderDecoderFile(file_bytes=total, **sizes_of(EncoderDecoderFile, found[0], path))
