"""What the files of a student hold, before it is known to fit its family and task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer


@dataclass(frozen=True)
class StoredStudent:
    """The content of a checkpoint folder or of a GGUF file.

    ``config``: as of ``config.json``; ``state``: tensors by checkpoint name, as stored; ``sha256`` of the weights;
    ``tokenizer`` with neither padding nor truncation, ``tokenizer_config`` without the chat template; ``generation``:
    as of ``generation_config.json``; ``chat_template``: Jinja, or None.
    """

    config: dict[str, Any]
    state: dict[str, torch.Tensor]
    sha256: str
    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any]
    generation: dict[str, Any]
    chat_template: str | None
