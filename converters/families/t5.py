"""T5 (``model_type`` t5): the original, version 1.1 and FLAN-T5."""

from __future__ import annotations

from .t5_layers import t5_anatomy

ANATOMY = t5_anatomy("t5", "T5ForConditionalGeneration")
