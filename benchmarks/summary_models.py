"""Writes the models that the peers of summarisers run; run by ``summarize.py`` in a process of its own.

    python summary_models.py ctranslate2|onnx CHECKPOINT OUT

``ctranslate2``: its own converter, int8, with ``pieces.json``, the vocabulary in order. ``onnx``: transformers' own
exporter, float32: encoder, first step and further steps.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SOURCE_TOKENS = 37
"""Of the example that is traced; its length is left free."""


def ctranslate2_model(checkpoint: Path, out: Path) -> None:
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    TransformersConverter(str(checkpoint)).convert(str(out), quantization="int8")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    pieces = json.loads((out / "shared_vocabulary.json").read_text(encoding="utf-8"))
    known = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if pieces[: len(known)] != known:
        raise RuntimeError("the converted vocabulary is in another order than the student's")
    (out / "pieces.json").write_text(json.dumps(pieces), encoding="utf-8")


def onnx_model(checkpoint: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.randint(3, model.config.vocab_size, (1, SOURCE_TOKENS))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # A step of one token has a cache of fixed length otherwise.
    steps = OnnxExporter().export_for_generation(model, dict(inputs), OnnxConfig(dynamic=True), multi_token_decode=True)
    steps.save_pretrained(out)
    OnnxExporter().export(model.encoder, dict(inputs), OnnxConfig(dynamic=True)).save_pretrained(out / "encoder")


if __name__ == "__main__":
    kind, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    {"ctranslate2": ctranslate2_model, "onnx": onnx_model}[kind](source, target)
