"""mT5 (``model_type`` mt5): Xue et al., "mT5: A Massively Multilingual Pre-trained Text-to-Text Transformer" (2021)."""

from __future__ import annotations

from .t5_layers import t5_anatomy

ANATOMY = t5_anatomy("mt5", "MT5ForConditionalGeneration")
