"""What the student foresees in float32, in torch: the texts' likelihood and every scored token's log-probabilities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder
from writer_texts import Window, scored_tokens


@dataclass(frozen=True)
class Reference:
    """``log_probabilities``: ``.npy`` float32 ``[scored tokens, V]``; ``nll``: mean in nats a token."""

    log_probabilities: Path
    nll: float


def fp32_reference(student: Student, windows: Sequence[Window], folder: Path) -> Reference:
    """The reference of these texts, computed where ``folder`` does not hold it yet."""
    text = json.dumps([student.sha256, *(asdict(window) for window in windows)])
    kept = folder / f"fp32-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(".part")
        shape = (scored_tokens(windows), student.shape.vocabulary)
        values = np.lib.format.open_memmap(draft, "w+", np.float32, shape)
        graph, place = TorchDecoder(student, "fp32"), 0
        graph.eval()
        with torch.no_grad():
            for window in windows:
                logits = graph.run({"input_ids": torch.tensor([window.ids[:-1]])})["logits"][0]
                logits = logits[window.lead_tokens - 1 :]
                values[place : place + len(logits)] = torch.log_softmax(logits.double(), -1).numpy()
                place += len(logits)
        values.flush()
        del values
        draft.replace(kept)
    values = np.load(kept, mmap_mode="r")
    tokens = [token for window in windows for token in window.ids[window.lead_tokens :]]
    return Reference(kept, -float(values[np.arange(len(tokens)), tokens].mean(dtype=np.float64)))
