"""What an encoder-decoder's ``.onnx`` files say of themselves, read without the engine and without any ONNX package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from .onnxruntime_decoder_file import DecoderFile, check_data_file, read_sizes

KIND = "edgescribe encoder-decoder 1"
SOURCE_KIND = "edgescribe encoder-decoder's source 1"
KEPT_KIND = "edgescribe encoder-decoder's keys and values 1"


@dataclass(frozen=True)
class EncoderDecoderFile:
    """Sizes of an artifact: of what writes as a decoder, and of what reads.

    ``target`` has ``heads`` and ``neurons`` of the half that has more of them, and ``weight_bytes`` of its own weights.
    A source of up to ``source_context`` tokens is kept as keys and values of ``source_heads`` heads, ``source_width``
    wide, for each of the target's layers; ``source_weight_bytes`` is what the linear layers that read it take.
    """

    target: DecoderFile
    source_context: int
    source_heads: int
    source_width: int
    source_weight_bytes: int

    @property
    def source_token_bytes(self) -> int:
        """Bytes that a token of the source is kept in."""
        return 8 * self.target.layers * self.source_heads * self.source_width

    @property
    def source_is_packed(self) -> bool:
        """Whether the engine reads the source by kernels that must pack their weights when the artifact is opened."""
        return self.target.precision == "w4a8-dynamic"


def source_file(path: Path) -> Path:
    """Which file reads the source, of the artifact ``path``, which writes the target."""
    return path.with_name(f"{path.stem}.source.onnx")


def kept_file(path: Path) -> Path:
    """Which file makes keys and values of what was read, of the artifact ``path``."""
    return path.with_name(f"{path.stem}.kept.onnx")


def read_encoder_decoder_file(path: Path) -> EncoderDecoderFile:
    """Read what the exporter wrote.

    Raises:
        BundleError: a file is missing, damaged or not an encoder-decoder's, or they are not of one artifact.
    """
    target = tuple(DecoderFile.__dataclass_fields__)[1:]
    source = tuple(EncoderDecoderFile.__dataclass_fields__)[1:]
    found = read_sizes(path, KIND, "an encoder-decoder", target + source)
    for other, kind in ((source_file(path), SOURCE_KIND), (kept_file(path), KEPT_KIND)):
        if read_sizes(other, kind, "that part of an encoder-decoder", target + source) != found:
            raise BundleError(f"{other} and {path} are not of one artifact: copy the bundle anew")
    check_data_file(path)
    precision, sizes = found
    return EncoderDecoderFile(
        DecoderFile(precision=precision, **{name: sizes[name] for name in target}),
        **{name: sizes[name] for name in source},
    )
