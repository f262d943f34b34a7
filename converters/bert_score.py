"""BERTScore with an encoder that lies in a folder.

Zhang et al., "BERTScore: Evaluating Text Generation with BERT" (2020). Each token of one text is matched greedily with
the token of the other whose contextual embedding has the highest cosine; precision is the mean over the prediction's
tokens, recall over the reference's. Special tokens do not count in the means but may be matched, as in the authors'
program, whose scores these are (without idf weights and without rescaling to a baseline). Scores of different encoders
or layers cannot be compared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import StudentError, UsageError

_TOKENS_AT_ONCE = 4096


class BertScorer:
    """Scores pairs of texts by one encoder.

    Args:
        folder: a checkpoint that ``transformers`` loads (``config.json``, weights, tokenizer); nothing is fetched.
        layer: which layer's outputs are compared: 0 the embeddings, 1 the first layer, -1 the last. The paper picks
            the layer that agrees best with people: the 9th of 12 for BERT-base, the 17th of 24 for RoBERTa-large.

    Texts longer than the encoder's positions are compared by their beginnings.

    Raises:
        StudentError: there is no encoder in the folder that can be loaded.
        UsageError: it has no such layer.
    """

    def __init__(self, folder: str | os.PathLike[str], layer: int = -1) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        path = Path(folder)
        if not (path / "config.json").is_file():
            raise StudentError(f"{path}: there is no config.json; give the folder of an encoder's checkpoint")
        verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()  # a head that is not needed here is no news
        transformers_logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self._encoder: Any = AutoModel.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise StudentError(f"{path}: the encoder cannot be loaded ({error}); give another checkpoint") from error
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
        config = self._encoder.config
        layers = int(config.num_hidden_layers)
        if not -layers - 1 <= layer <= layers:
            raise UsageError(f"{path} has {layers} layers: give one from 0 to {layers}, or -1, the last; not {layer}")
        self._layer = layer
        positions = int(getattr(config, "max_position_embeddings", 512) or 512)
        self._most_tokens = min(int(self._tokenizer.model_max_length), positions - _positions_lost(config))

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """Precision, recall and F1 of each pair ``[N, 3]``, cosines (at most 1); 0 where one text has no token.

        Two texts without tokens have 0 as well, as in the other overlap metrics.
        """
        if not predictions:
            return np.zeros((0, 3))
        unique = sorted({*predictions, *references}, key=len)
        embedded = self._embed(unique)
        rows = [_match(embedded[one], embedded[two]) for one, two in zip(predictions, references, strict=True)]
        return np.array(rows, np.float64)

    def _embed(self, texts: Sequence[str]) -> dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Of each text, unit embeddings ``[T, width]`` and which of its tokens are no special ones ``[T]``."""
        found: dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}
        encoded = self._tokenizer(
            list(texts), truncation=True, max_length=self._most_tokens, return_special_tokens_mask=True
        )
        lengths = [len(ids) for ids in encoded["input_ids"]]
        begin = 0
        while begin < len(texts):
            end = begin + 1
            while end < len(texts) and (end + 1 - begin) * max(lengths[begin : end + 1]) <= _TOKENS_AT_ONCE:
                end += 1
            self._embed_batch(texts, encoded, begin, end, found)
            begin = end
        return found

    def _embed_batch(self, texts: Sequence[str], encoded: Any, begin: int, end: int, found: dict[str, Any]) -> None:
        width = max(1, max(len(ids) for ids in encoded["input_ids"][begin:end]))
        ids = torch.full((end - begin, width), int(self._tokenizer.pad_token_id or 0), dtype=torch.long)
        mask = torch.zeros((end - begin, width), dtype=torch.long)
        for row, own in enumerate(encoded["input_ids"][begin:end]):
            ids[row, : len(own)] = torch.tensor(own, dtype=torch.long)
            mask[row, : len(own)] = 1
        with torch.no_grad():
            outputs = self._encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        hidden = torch.nn.functional.normalize(outputs.hidden_states[self._layer].float(), dim=-1).numpy()
        for row in range(end - begin):
            special = np.array(encoded["special_tokens_mask"][begin + row], bool)
            found[texts[begin + row]] = (hidden[row, : len(special)].copy(), ~special)


def _match(
    prediction: tuple[NDArray[np.float32], NDArray[np.bool_]], reference: tuple[NDArray[np.float32], NDArray[np.bool_]]
) -> tuple[float, float, float]:
    (ours, our_words), (theirs, their_words) = prediction, reference
    if not our_words.any() or not their_words.any():
        return 0.0, 0.0, 0.0
    cosines = ours @ theirs.T
    precision = float(cosines.max(axis=1)[our_words].mean())
    recall = float(cosines.max(axis=0)[their_words].mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0


def _positions_lost(config: Any) -> int:
    """RoBERTa's positions begin behind its padding token's number."""
    behind = config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "bertweet")
    return int(config.pad_token_id or 0) + 1 if behind else 0
