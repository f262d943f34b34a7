"""The tokenizer that a GGUF file holds, as one of the package ``tokenizers``.

Byte-level BPE (``gpt2``) names only how text is split before merging (``tokenizer.ggml.pre``); each such name stands
for a pattern of llama.cpp's. Sentencepiece's BPE (``llama``) has a score for every piece in place of merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import StudentError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Types of tokens beside normal ones (1), unused ones (5) and bytes (6)."""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)

QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SPLITS: dict[str, tuple[str | None, bool]] = {
    "default": (None, False),
    "gpt-2": (None, False),
    "gpt2": (None, False),
    "smollm": (None, True),
    "llama-bpe": (LLAMA3, False),
    "llama-v3": (LLAMA3, False),
    "llama3": (LLAMA3, False),
    "qwen2": (QWEN2, False),
}
"""By name: the pattern of words (None: GPT-2's own), and whether digits are split off one by one before."""

NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}

SPACE = "▁"


def read_gguf_tokenizer(
    path: Path, metadata: Mapping[str, Any]
) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
    """Tokenizer, what ``tokenizer_config.json`` would hold, and what ``generation_config.json`` would.

    Raises:
        StudentError: there is none, it is damaged, or of a kind that is not read.
    """
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise StudentError(f"{path} holds no tokenizer; give the checkpoint folder that it was made from")
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(path, metadata, tokens)
        elif kind == "llama":
            tokenizer = _sentencepiece(metadata, tokens, types)
        else:
            raise StudentError(f"{path} has a tokenizer of the kind {kind!r}; gpt2 and llama are read")
        for token, number in zip(tokens, types, strict=True):
            if number in (UNKNOWN, CONTROL):
                tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
            elif number == USER_DEFINED:
                tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
        ids = _special_ids(metadata, len(tokens))
        tokenizer.post_processor = _post_processor(metadata, kind, tokens, ids)
    except StudentError:
        raise
    except Exception as error:
        raise StudentError(f"{path} holds a tokenizer that cannot be read: {error}. Download it again") from error
    if any(tokenizer.token_to_id(token) != number for number, token in enumerate(tokens)):
        raise StudentError(f"{path} holds a tokenizer in which a token stands twice; download the file again")
    config = {name: tokens[ids[key]] for key, name in NAMES.items() if key in ids}
    generation: dict[str, Any] = {}
    ends = list(dict.fromkeys(ids[key] for key in ("eos", "eot") if key in ids))
    if ends:
        generation["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    for key, field in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if key in ids:
            generation[field] = ids[key]
    return tokenizer, config, generation


def _special_ids(metadata: Mapping[str, Any], size: int) -> dict[str, int]:
    found = {}
    for key in (*NAMES, "eot"):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(number, int) and 0 <= number < size:
            found[key] = number
    return found


def _byte_level(path: Path, metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in SPLITS:
        raise StudentError(
            f"{path} splits text as {name!r} before it is cut into tokens, which is not known here "
            f"({', '.join(SPLITS)} are); give the checkpoint folder that it was made from"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or ()]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pattern, digits = SPLITS[name]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pattern == LLAMA3))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if pattern == QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    merges = _merges_of_scores(tokens, types, scores, vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE)
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = replace
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_of_scores(
    tokens: list[str], types: list[int], scores: list[float], vocabulary: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Sentencepiece joins the two neighbours whose whole has the best score: as merges, the best whole first."""
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind == 1}
    found: list[tuple[float, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        if token not in normal:
            continue
        for cut in range(1, len(token)):
            first, second = token[:cut], token[cut:]
            if first in normal and second in normal:
                found.append((-score, vocabulary[token], first, second))
    found.sort(key=lambda each: each[:2])
    return [(first, second) for _, _, first, second in found]


def _post_processor(metadata: Mapping[str, Any], kind: object, tokens: list[str], ids: Mapping[str, int]) -> Any:
    """Puts the first and last token around a text where the file says so; Sentencepiece's has a first one if not."""
    first = bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")) and "bos" in ids
    last = bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and "eos" in ids
    named = [tokens[ids[key]] for key, wanted in (("bos", first), ("eos", last)) if wanted]
    parts = [*([named[0]] if first else []), "$A", *([named[-1]] if last else [])]
    special = [(token, tokens.index(token)) for token in named]
    return processors.TemplateProcessing(single=parts, pair=[*parts, "$B"], special_tokens=special)
