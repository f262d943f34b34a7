"""Trimming the vocabulary to a domain: tokens its texts never use leave the tokenizer and the embedding table.

What stays besides the tokens used: the special and added tokens, and every piece of one character (and every
byte), so that any text can still be cut. Text of the domain is cut as before: in WordPiece the longest match
stays the longest (and a word that none fits stays unknown, since the pieces stay that led there), in BPE every
merge that leads to a kept token stays, in Unigram the best path stays the best (and the least likely piece stays,
from which the price of an unknown character is reckoned). Of a writer the tokens stay too that its chat template puts
around messages.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer

from ..errors import RecipeError, StudentError
from . import generation_defaults
from .chat_prompts import chat_prompts
from .student import Student

CHECKED = 2000
"""Texts that are cut by both tokenizers to see that they agree, when every token of the domain was kept."""

ENCODER_ID_FIELDS = ("cls_token_id", "sep_token_id", "mask_token_id", "unk_token_id")
"""Fields of ``config.json`` with a token's number, beside those of the generation defaults."""


SENTINEL = re.compile(r"<extra_id_\d+>")
"""T5's tokens that stand for what was left out of a text; only its pretraining uses them."""


def trim_vocabulary(student: Student, texts: Sequence[str], size: int = 0, sentinels: bool = True) -> Student:
    """The student with only the tokens that ``texts`` use, at most ``size`` of them (0: all of them).

    ``sentinels``: T5's ``<extra_id_…>`` stay, whether used or not, so that it can be trained as it was at first.

    Raises:
        RecipeError: no texts, or ``size`` is too small even for the tokens that must stay.
        StudentError: a tokenizer model that is not WordPiece, BPE, Unigram or WordLevel.
    """
    if not texts:
        raise RecipeError("the vocabulary is trimmed to domain text, and there is none")
    description = json.loads(student.tokenizer.to_str())
    kept = _kept_rows(student, description, texts, size, sentinels)
    new_id = {old: new for new, old in enumerate(kept)}
    tokenizer = Tokenizer.from_str(json.dumps(_rewritten(description, new_id)))
    if size == 0 or len(kept) < size:
        _check_agreement(student.tokenizer, tokenizer, new_id, texts[:CHECKED])
    config = generation_defaults.renumbered(copy.deepcopy(student.config), new_id)
    for field in ("vocabulary", "decoder_vocabulary"):
        if field in student.anatomy.config_fields:
            config[student.anatomy.config_fields[field]] = len(kept)
    for field in ENCODER_ID_FIELDS:
        if isinstance(config.get(field), int):
            config[field] = new_id.get(config[field])
    # Where positions are counted from the padding token (RoBERTa), they move down with it.
    moved = student.shape.position_offset - student.anatomy.shape(config).position_offset
    if moved:
        config[student.anatomy.config_fields["positions"]] = student.shape.positions - moved
    index = torch.tensor(kept)
    layout, state = student.layout, {}
    for name, tensor in student.state.items():
        axes = layout[name].axes
        if "vocabulary" in axes:
            tensor = tensor.index_select(axes.index("vocabulary"), index).contiguous()
        elif axes[0] == "positions":
            tensor = tensor[moved:].contiguous()
        state[name] = tensor
    tokenizer_config = dict(student.tokenizer_config)
    if isinstance(tokenizer_config.get("added_tokens_decoder"), dict):
        decoder = tokenizer_config["added_tokens_decoder"]
        tokenizer_config["added_tokens_decoder"] = {
            str(new_id[int(old)]): entry for old, entry in decoder.items() if int(old) in new_id
        }
    if not sentinels:
        tokenizer_config = _without_sentinels(tokenizer_config)
    return replace(
        student,
        config=config,
        state=state,
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        pad_id=new_id.get(student.pad_id, 0),
        generation=generation_defaults.renumbered(student.generation, new_id),
    )


def _without_sentinels(tokenizer_config: Mapping[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json`` without T5's sentinels, which transformers would put into the vocabulary again."""
    changed = {name: value for name, value in tokenizer_config.items() if name != "extra_ids"}
    for field in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(changed.get(field), list):
            texts = [each.get("content") if isinstance(each, dict) else each for each in changed[field]]
            known = zip(changed[field], texts, strict=True)
            changed[field] = [each for each, text in known if not SENTINEL.fullmatch(str(text))]
    return changed


def trimmed_size(student: Student, texts: Sequence[str], size: int = 0) -> int:
    """How many tokens :func:`trim_vocabulary` keeps; raises as it does."""
    return len(_kept_rows(student, json.loads(student.tokenizer.to_str()), texts, size, True))


def _kept_rows(
    student: Student, description: Mapping[str, Any], texts: Sequence[str], size: int, sentinels: bool
) -> list[int]:
    """Rows of the embedding table to keep, ascending."""
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), 1000):
        some = list(texts[start : start + 1000])
        encodings = student.tokenizer.encode_batch(some)
        for encoding in encodings:
            counts.update(encoding.ids)
        unknown = _unknown_id(description["model"])
        failed = [text for text, each in zip(some, encodings, strict=True) if unknown in each.ids]
        counts.update(_pieces_before_failure(student.tokenizer, description["model"], failed))
    rows = student.shape.vocabulary
    return [number for number in _kept_ids(student, description, counts, size, sentinels) if number < rows]


def _unknown_id(model: Mapping[str, Any]) -> int | None:
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    return _vocabulary(model).get(str(model.get("unk_token")))


def _pieces_before_failure(tokenizer: Tokenizer, model: Mapping[str, Any], texts: Sequence[str]) -> Counter[int]:
    """WordPiece: the longest matches that were found in a word before none fitted, so that none will again."""
    found: Counter[int] = Counter()
    if model.get("type") != "WordPiece":
        return found
    vocabulary, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
    for text in texts:
        normal = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
        splitter = tokenizer.pre_tokenizer
        words = [normal] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(normal)]
        for word in words:
            found.update(_longest_matches(word[: model.get("max_input_chars_per_word") or 100], vocabulary, prefix))
    return found


def _longest_matches(word: str, vocabulary: Mapping[str, int], prefix: str) -> list[int]:
    """Greedy longest matches from the start of ``word`` as far as they go."""
    matches, start = [], 0
    while start < len(word):
        lead = prefix if start else ""
        end = next((end for end in range(len(word), start, -1) if lead + word[start:end] in vocabulary), None)
        if end is None:
            break
        matches.append(vocabulary[lead + word[start:end]])
        start = end
    return matches


def _kept_ids(
    student: Student, description: Mapping[str, Any], counts: Counter[int], size: int, sentinels: bool
) -> list[int]:
    """Old ids to keep, ascending."""
    model = description["model"]
    vocabulary = _vocabulary(model)
    added = description.get("added_tokens") or ()
    must = {entry["id"] for entry in added if sentinels or not SENTINEL.fullmatch(entry["content"])}
    must |= generation_defaults.token_ids(student.config) | generation_defaults.token_ids(student.generation)
    must.update(number for field in ENCODER_ID_FIELDS if isinstance(number := student.config.get(field), int))
    must |= {student.pad_id, *_processor_ids(description.get("post_processor"))}
    must.update(number for fixed in student.anatomy.fixed_ids for number in range(fixed + 1))
    unknown = _unknown_id(model)
    if unknown is not None:
        must.add(unknown)
    if model["type"] == "Unigram":
        must.add(min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1]))
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    for token, number in vocabulary.items():
        bare = token.removeprefix(prefix).removesuffix(suffix)
        is_character = len(bare) == 1 and (_is_common(bare) or counts[number] > 0)
        if is_character or (token.startswith("<0x") and token.endswith(">")):
            must.add(number)
    parents = _merge_parents(model, vocabulary)
    kept = set(must)
    for prompt in chat_prompts(student):
        for number in student.tokenizer.encode(prompt).ids:
            if number not in kept:
                kept |= _closure(number, parents, kept)
    if size and size < len(kept):
        raise RecipeError(
            f"the recipe asks for a vocabulary of {size}; {len(kept)} tokens must stay (special tokens, single "
            "characters and a chat template's words): give more, or 0 for all that the domain text uses"
        )
    for number, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if number in kept:
            continue
        closure = _closure(number, parents, kept)
        if size and len(kept) + len(closure) > size:
            continue
        kept |= closure
    return sorted(kept)


def _is_common(character: str) -> bool:
    """Single characters that stay whether used or not: all but the large ideographic and syllabic blocks."""
    return ord(character) < 0x2E80


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    kind, vocabulary = model.get("type"), model.get("vocab")
    if kind == "Unigram" and isinstance(vocabulary, list):
        return {token: number for number, (token, _) in enumerate(vocabulary)}
    if kind in ("WordPiece", "BPE", "WordLevel") and isinstance(vocabulary, dict):
        return dict(vocabulary)
    raise StudentError(
        f"the tokenizer's model is {kind!r}; vocabularies of WordPiece, BPE, Unigram and WordLevel can be trimmed"
    )


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for merge in model.get("merges") or ():
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        pairs.append((first, second))
    return pairs


def _joined(model: Mapping[str, Any], first: str, second: str) -> str:
    prefix = model.get("continuing_subword_prefix") or ""
    return first + (second.removeprefix(prefix) if prefix else second)


def _merge_parents(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[int, list[int]]:
    """For each BPE token, the tokens that some merge makes it of."""
    parents: dict[int, list[int]] = {}
    for first, second in _pairs(model):
        child = vocabulary.get(_joined(model, first, second))
        if child is not None and first in vocabulary and second in vocabulary:
            parents.setdefault(child, []).extend((vocabulary[first], vocabulary[second]))
    return parents


def _closure(number: int, parents: Mapping[int, list[int]], kept: set[int]) -> set[int]:
    found, waiting = {number}, [number]
    while waiting:
        for parent in parents.get(waiting.pop(), ()):
            if parent not in found and parent not in kept:
                found.add(parent)
                waiting.append(parent)
    return found


def _rewritten(description: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """``tokenizer.json`` with only the kept tokens, under their new numbers."""
    rewritten = copy.deepcopy(dict(description))
    model = rewritten["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new_id]
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = new_id[model["unk_id"]]
    else:
        model["vocab"] = {token: new_id[number] for token, number in model["vocab"].items() if number in new_id}
    if model.get("merges"):
        model["merges"] = [
            merge
            for merge, (first, second) in zip(model["merges"], _pairs(model), strict=True)
            if first in model["vocab"] and second in model["vocab"] and _joined(model, first, second) in model["vocab"]
        ]
    rewritten["added_tokens"] = [
        {**entry, "id": new_id[entry["id"]]} for entry in rewritten.get("added_tokens", ()) if entry["id"] in new_id
    ]
    if rewritten.get("post_processor"):
        rewritten["post_processor"] = _renumbered(rewritten["post_processor"], new_id)
    return rewritten


def _renumbered(processor: Any, new_id: Mapping[int, int]) -> Any:
    """A post-processor with the new numbers: templates list ``ids``, BERT's and RoBERTa's name ``sep`` and ``cls``."""
    if not isinstance(processor, dict):
        return processor
    changed = dict(processor)
    if processor.get("type") == "Sequence":
        changed["processors"] = [_renumbered(each, new_id) for each in processor["processors"]]
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            token, number = processor[name]
            changed[name] = [token, new_id[number]]
    if isinstance(processor.get("special_tokens"), dict):
        changed["special_tokens"] = {
            token: {**entry, "ids": [new_id[number] for number in entry["ids"]]}
            for token, entry in processor["special_tokens"].items()
        }
    return changed


def _processor_ids(processor: Any) -> set[int]:
    """Numbers of the tokens that a post-processor puts in."""
    if not isinstance(processor, dict):
        return set()
    found = {number for each in processor.get("processors") or () for number in _processor_ids(each)}
    found |= {processor[name][1] for name in ("sep", "cls") if isinstance(processor.get(name), list)}
    special = processor.get("special_tokens")
    if isinstance(special, dict):
        found |= {number for entry in special.values() for number in entry["ids"]}
    return found


def _check_agreement(old: Tokenizer, new: Tokenizer, new_id: Mapping[int, int], texts: Sequence[str]) -> None:
    before, after = old.encode_batch(list(texts)), new.encode_batch(list(texts))
    for text, one, other in zip(texts, before, after, strict=True):
        if [new_id.get(number, -1) for number in one.ids] != other.ids:
            raise StudentError(
                "after trimming, the tokenizer cuts a text of the domain otherwise than before; leave the vocabulary "
                f"out of the recipe for this student. The text begins: {text[:80]!r}"
            )
