"""The engines of summarisers, each opened and driven by its own calls: what runs inside ``summary_process.py``.

Each kind reads a source given as tokens and writes greedily. Nothing is imported but what a kind needs. The engines'
threads wait in the way that each engine chooses by itself; ours spin as the peers' do where the engine can be told.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Spec = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """One summary: milliseconds in all, of these until the first token was chosen (None: the engine does not tell),
    and its tokens without those that start it."""

    total_ms: float
    first_ms: float | None
    tokens: list[int]


class Engine(ABC):
    """A student opened in an engine; ``spec`` is what ``summary_process.py`` was started with."""

    def __init__(self, spec: Spec) -> None:
        self.start: list[int] = spec["start_ids"]
        self.ends: frozenset[int] = frozenset(spec["end_ids"])
        self.threads: int = spec["threads"]

    @abstractmethod
    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""

    @abstractmethod
    def write(self, source: Sequence[int], tokens: int, exactly: bool) -> Written:
        """Read a source and write the likeliest token each time: ``tokens`` at most, or exactly as many."""


class Edgescribe(Engine):
    """An artifact of ours, by the session below :class:`edgescribe.Summarizer`."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions
        from edgescribe.runtimes.registry import open_encoder_decoder

        options = EncoderDecoderOptions(
            threads=spec["threads"],
            spinning=spec["spinning"],
            context=spec["context"],
            source_context=spec["source_context"],
            cache_dir=None if spec.get("cache") is None else Path(spec["cache"]),
        )
        self.session = open_encoder_decoder(spec["runtime"], Path(spec["path"]), options)

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        used = self.session.effective
        return f"{used.engine} {used.engine_version}, {used.threads} threads, {used.provider or used.device}"

    def write(self, source: Sequence[int], tokens: int, exactly: bool) -> Written:
        """Read and write."""
        session = self.session
        begun = time.perf_counter()
        session.read(source)
        token = int(session.prefill(self.start).argmax())
        first = time.perf_counter()
        written = []
        while exactly or token not in self.ends:
            written.append(token)
            if len(written) == tokens:
                break
            token = int(session.step(token).argmax())
        return Written((time.perf_counter() - begun) * 1000, (first - begun) * 1000, written)


class CTranslate2(Engine):
    """A folder of CTranslate2's converter in its Translator, with its own defaults but for threads; int8."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        import ctranslate2

        self.library = ctranslate2
        self.pieces: list[str] = json.loads(Path(spec["pieces"]).read_text(encoding="utf-8"))
        self.numbers = {piece: number for number, piece in enumerate(self.pieces)}
        self.translator = ctranslate2.Translator(
            spec["path"], device="cpu", compute_type="int8", intra_threads=spec["threads"], inter_threads=1
        )

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        return f"ctranslate2 {self.library.__version__}, {self.threads} threads, {self.translator.compute_type}"

    def write(self, source: Sequence[int], tokens: int, exactly: bool) -> Written:
        """Read and write."""
        words = [self.pieces[token] for token in source]
        begun = time.perf_counter()
        found = self.translator.translate_batch(
            [words], beam_size=1, max_decoding_length=tokens, min_decoding_length=tokens if exactly else 1,
            max_input_length=0,
        )  # fmt: skip
        total = (time.perf_counter() - begun) * 1000
        return Written(total, None, [self.numbers[piece] for piece in found[0].hypotheses[0]])


class Transformers(Engine):
    """The float32 checkpoint in transformers' ``generate`` on torch."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        import torch
        import transformers

        torch.set_num_threads(spec["threads"])
        self.torch, self.version = torch, transformers.__version__
        self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(spec["path"], dtype=torch.float32).eval()

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        return f"transformers {self.version} on torch {self.torch.__version__}, {self.threads} threads"

    def write(self, source: Sequence[int], tokens: int, exactly: bool) -> Written:
        """Read and write."""
        torch = self.torch
        row = torch.tensor([list(source)])
        begun = time.perf_counter()
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=row, attention_mask=torch.ones_like(row), num_beams=1, do_sample=False,
                max_new_tokens=tokens, min_new_tokens=tokens if exactly else None,
            )  # fmt: skip
        total = (time.perf_counter() - begun) * 1000
        written = [int(token) for token in found[0, len(self.start) :]]
        kept = next((at for at, token in enumerate(written) if token in self.ends and not exactly), len(written))
        return Written(total, None, written[:kept])


class OnnxExport(Engine):
    """What transformers' own exporter made, in plain ONNX Runtime: encoder, first step and further steps in float32.

    The exporter gives no loop, so this is ours, with every cache bound where the engine left it.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        import onnxruntime

        self.library = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec["threads"]
        self.encoder, self.first, self.further = (
            onnxruntime.InferenceSession(str(Path(spec["path"], name)), options, providers=["CPUExecutionProvider"])
            for name in ("encoder/model.onnx", "prefill.onnx", "decode.onnx")
        )
        self.wanted = [one.name for one in self.first.get_outputs()]
        self.later = [one.name for one in self.further.get_outputs()]
        self.asked = {one.name for one in self.further.get_inputs()}

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        return f"onnxruntime {self.library.__version__}, {self.threads} threads, CPUExecutionProvider"

    def _run(self, session: Any, feeds: dict[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return dict(zip(outputs, binding.get_outputs(), strict=True))

    def write(self, source: Sequence[int], tokens: int, exactly: bool) -> Written:
        """Read and write."""
        value = self.library.OrtValue.ortvalue_from_numpy
        row = np.asarray([source], np.int64)
        begun = time.perf_counter()
        mask = value(np.ones_like(row))
        hidden = self._run(self.encoder, {"input_ids": value(row), "attention_mask": mask}, ["last_hidden_state"])
        same = {"attention_mask": mask, "encoder_outputs.last_hidden_state": hidden["last_hidden_state"]}
        start = value(np.asarray([self.start], np.int64))
        state = self._run(self.first, {**same, "decoder_input_ids": start}, self.wanted)
        token = int(state["logits"].numpy()[0, -1].argmax())
        first = time.perf_counter()
        written = []
        kept = {f"input.{name}": held for name, held in state.items() if name.startswith("past_key_values")}
        while exactly or token not in self.ends:
            written.append(token)
            if len(written) == tokens:
                break
            feeds = {**same, **kept, "decoder_input_ids": value(np.asarray([[token]], np.int64))}
            found = self._run(self.further, {n: v for n, v in feeds.items() if n in self.asked}, self.later)
            token = int(found["logits"].numpy()[0, -1].argmax())
            changed = {
                name.replace("output.", "input.", 1): held
                for name, held in found.items()
                if name.startswith("output.past_key_values.self")
            }
            kept = {**kept, **changed}
        return Written((time.perf_counter() - begun) * 1000, (first - begun) * 1000, written)


KINDS: dict[str, type[Engine]] = {
    "edgescribe": Edgescribe,
    "ctranslate2": CTranslate2,
    "transformers": Transformers,
    "onnx-export": OnnxExport,
}
