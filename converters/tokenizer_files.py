"""The tokenizer of a checkpoint folder: its ``tokenizer.json``, or one made of older vocabulary files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import StudentError
from .json_files import read_object
from .marian_tokenizers import is_marian, read_marian

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that ``tokenizer_config.json`` names, or in older checkpoints ``special_tokens_map.json``."""

CHAT_TEMPLATE = "chat_template.jinja"

VOCABULARIES = ("vocab.txt", "vocab.json")
"""Older vocabulary files, beside those of sentencepiece (``….model``)."""


def read_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, with neither padding nor truncation set, and the content of ``tokenizer_config.json``.

    Raises:
        StudentError: there is none, or it is damaged.
    """
    config = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    older = folder / "special_tokens_map.json"
    if older.is_file():
        config = {**{name: token for name, token in read_object(older).items() if name in NAMED}, **config}
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise StudentError(f"{path} is not a tokenizer that can be read: {error}") from error
    elif is_marian(folder):
        named = {name: token for name in NAMED if (token := special_token(config, name)) is not None}
        tokenizer = read_marian(folder, config, named)
    else:
        tokenizer = _converted(folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, config


def _converted(folder: Path) -> Tokenizer:
    """The fast tokenizer of older vocabulary files (vocab.txt, merges, sentencepiece), as transformers makes it."""
    from transformers import AutoTokenizer

    # Without any of them transformers makes a tokenizer that knows nothing, and says no word.
    if not any(path.suffix == ".model" or path.name in VOCABULARIES for path in folder.iterdir()):
        raise StudentError(f"{folder} has no tokenizer.json; save the student's tokenizer.json beside its weights")
    try:
        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer = Tokenizer.from_str(slow.backend_tokenizer.to_str())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StudentError(
            f"{folder} has no tokenizer.json, and none could be made of its other files: {reason}. "
            "Save the student's tokenizer.json beside its weights"
        ) from error
    return tokenizer


def read_chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template of ``chat_template.jinja`` or of ``tokenizer_config.json`` (``config``), or None.

    Of several templates with names, the one called ``default``, else the first.

    Raises:
        StudentError: it is not text.
    """
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        try:
            # Line ends are part of a prompt.
            return path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise StudentError(f"{path} is not UTF-8: {error}") from error
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {each.get("name"): each.get("template") for each in given if isinstance(each, dict)}
        given = named.get("default", next(iter(named.values()), None))
    if given is not None and not isinstance(given, str):
        raise StudentError(f"{folder / 'tokenizer_config.json'} has a chat_template that is not text")
    return given


def special_token(config: dict[str, Any], name: str) -> str | None:
    """A special token (``pad_token``) by its name in ``tokenizer_config.json``; None where it has none."""
    token = config.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
