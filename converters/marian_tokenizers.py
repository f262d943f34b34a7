"""Marian's tokenizer, which is kept as two sentencepiece models and a list of pieces, as one ``tokenizer.json``.

The models cut a text into pieces and ``vocab.json`` numbers these, for source and target alike; the source's model has
the likelihoods by which texts are cut. Pieces of the target alone are kept for writing; no text is cut into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import StudentError
from .json_files import read_object

SOURCE, NUMBERS, TARGET_NUMBERS = "source.spm", "vocab.json", "target_vocab.json"

UNIGRAM = 1
"""sentencepiece's number of the kind of model that goes by likelihoods."""

USED = (1, 4)
"""sentencepiece's numbers of the kinds of pieces that a text can be cut into: ordinary ones and a user's."""

UNREAD = -1e4
"""Likelihood (logarithm) of pieces that only the target has: far below every other."""


def is_marian(folder: Path) -> bool:
    """Whether a folder has its tokenizer in Marian's files."""
    return (folder / SOURCE).is_file() and (folder / NUMBERS).is_file()


def read_marian(folder: Path, config: Mapping[str, Any], named: Mapping[str, str]) -> Tokenizer:
    """The tokenizer of a folder for which :func:`is_marian` holds.

    Args:
        config: content of ``tokenizer_config.json``.
        named: the special tokens ``eos_token``, ``unk_token`` and ``pad_token`` that it names.

    Raises:
        StudentError: source and target are numbered apart, the model goes by no likelihoods, or a file is damaged.
    """
    if config.get("separate_vocabs") or (folder / TARGET_NUMBERS).is_file():
        raise StudentError(
            f"{folder} numbers the tokens of source and target apart ({TARGET_NUMBERS}); a student has one tokenizer "
            "for what it reads and what it writes"
        )
    pieces = _pieces(folder / NUMBERS)
    model = _model(folder / SOURCE)
    if model.trainer_spec.model_type != UNIGRAM:
        raise StudentError(
            f"{folder / SOURCE} is no unigram model of sentencepiece, the only kind that a tokenizer.json can be made "
            "of; save the student's tokenizer.json beside its weights"
        )
    likely = {each.piece: each.score for each in model.pieces if each.type in USED}
    special = {piece for piece in pieces if piece.startswith(">>") and piece.endswith("<<")}
    names = {**DEFAULTS, **named}
    missing = [names[name] for name in ("eos_token", "unk_token") if names[name] not in pieces]
    if missing:
        raise StudentError(f"{folder / NUMBERS} does not number {missing[0]!r}; the file is damaged")
    special |= {names[name] for name in DEFAULTS if names[name] in pieces}
    scores = [(piece, 0.0 if piece in special else likely.get(piece, UNREAD)) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=pieces.index(names["unk_token"]), byte_fallback=False))
    normalizer = bytes(model.normalizer_spec.precompiled_charsmap)
    if normalizer:
        tokenizer.normalizer = normalizers.Precompiled(normalizer)
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.add_special_tokens(sorted(special, key=pieces.index))
    end = names["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, pieces.index(end))]
    )
    return tokenizer


DEFAULTS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""What Marian calls its special tokens where ``tokenizer_config.json`` does not say."""


def _pieces(path: Path) -> list[str]:
    """Pieces by their number."""
    numbered = read_object(path)
    if not numbered or sorted(map(str, numbered.values())) != sorted(map(str, range(len(numbered)))):
        raise StudentError(f"{path} does not number its pieces from 0 without a gap; the file is damaged")
    return sorted(numbered, key=lambda piece: int(numbered[piece]))


def _model(path: Path) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2 as sentencepiece

    # The class is made while that module is imported.
    model: Any = vars(sentencepiece)["ModelProto"]()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise StudentError(f"{path} is not a model of sentencepiece: {error}") from error
    return model
