"""The students that summarisers are measured with: the one that ships, and real shapes with random weights."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgescribe.sdk.console import note

SHIPPED = Path(__file__).parents[1] / "samples/debian_synopses/student"
SHAPES: dict[str, dict[str, Any]] = {
    "t5-small": {},
    "flan-t5-base": {
        "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Fields of transformers' T5Config beside its defaults, which are t5-small's."""


@dataclass(frozen=True)
class BenchmarkStudent:
    """``name`` of the table, ``checkpoint`` folder in float32, and whether its weights mean something."""

    name: str
    checkpoint: Path
    trained: bool


def benchmark_student(name: str, folder: Path) -> BenchmarkStudent:
    """The student of a name; a random one is made in ``folder`` where it is not there yet."""
    if name == "shipped":
        return BenchmarkStudent(name, SHIPPED, True)
    checkpoint = folder / "students" / name
    if not checkpoint.is_dir():
        note(f"making random weights of {name}'s shape (once)")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=checkpoint.parent) as scratch:
            draft = Path(scratch, "student")
            _random(SHAPES[name], draft)
            shutil.move(draft, checkpoint)
    return BenchmarkStudent(name, checkpoint, False)


def _random(fields: dict[str, Any], folder: Path) -> None:
    """A checkpoint of random weights with a vocabulary of made-up words."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(decoder_start_token_id=0, **fields)
    model = T5ForConditionalGeneration(config)
    if fields.get("tie_word_embeddings") is False:
        head = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
        model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(f"▁w{number}", -1.0) for number in range(config.vocab_size - len(special))]
    tokenizer = Tokenizer(models.Unigram(special + pieces, unk_id=2))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
