"""The engines of writers, each opened and driven by its own calls: what runs inside ``writer_process.py``.

Each kind writes greedily from token ids, tells how long the prompt and each further token took, and gives the logits
of every token of a text. Nothing is imported but what a kind needs. The engines' threads wait in the way that each
engine chooses by itself; ours spin as the peers' do where the engine can be told.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Spec = dict[str, Any]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Turn:
    """One text: milliseconds until its first token was chosen, and of each further token; and the tokens."""

    prefill_ms: float
    steps_ms: list[float]
    tokens: list[int]


class Engine(ABC):
    """A student opened in an engine; ``spec`` is what ``writer_process.py`` was started with."""

    @abstractmethod
    def __init__(self, spec: Spec) -> None: ...

    @abstractmethod
    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""

    @abstractmethod
    def ids(self, text: str) -> list[int]:
        """A text's tokens, without special ones before or behind it."""

    @abstractmethod
    def write(self, ids: Sequence[int], tokens: int) -> Turn:
        """Go on from ``ids`` by so many tokens, the likeliest each time, whatever they mean."""

    @abstractmethod
    def logits(self, ids: Sequence[int]) -> Iterator[Logits]:
        """The logits behind each of the tokens: arrays ``[k, V]`` one after the other."""

    def start(self, text: str, tokens: int) -> int:
        """The first token behind a text of at most ``tokens`` tokens."""
        return self.write(self.ids(text)[:tokens], 1).tokens[0]


class Edgescribe(Engine):
    """A bundle of ours: the session below :class:`edgescribe.Writer`, opened as ``edgescribe.load_writer`` does."""

    def __init__(self, spec: Spec) -> None:
        from edgescribe.runtimes.decoder_contract import DecoderOptions
        from edgescribe.sdk.bundle import decoder_answers, read_bundle
        from edgescribe.sdk.open_writer import open_writer

        bundle = read_bundle(spec["path"])
        artifact = bundle.artifacts(spec["runtime"], spec["precision"])[0]
        cache = None if spec.get("cache") is None else Path(spec["cache"])
        options = DecoderOptions(threads=spec["threads"], context=spec["context"], cache_dir=cache,
                                 spinning=spec["spinning"], answers=decoder_answers(artifact))  # fmt: skip
        self.writer = open_writer(bundle, artifact, options, None)

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        used = self.writer.effective
        return f"{used.engine} {used.engine_version}, {used.threads} threads, {used.provider or used.device}"

    def ids(self, text: str) -> list[int]:
        """A text's tokens."""
        return list(self.writer.codec.encode(text, specials=False))

    def write(self, ids: Sequence[int], tokens: int) -> Turn:
        """Go on from ``ids``."""
        with self.writer.borrowed() as session:
            begun = time.perf_counter()
            written = [int(session.prefill(ids).argmax())]
            before = time.perf_counter()
            prefill, steps = before - begun, []
            for _ in range(tokens - 1):
                written.append(int(session.step(written[-1]).argmax()))
                after = time.perf_counter()
                steps.append((after - before) * 1000)
                before = after
        return Turn(prefill * 1000, steps, written)

    def logits(self, ids: Sequence[int]) -> Iterator[Logits]:
        """The logits behind each of the tokens."""
        return self.writer.logits(ids)

    def start(self, text: str, tokens: int) -> int:
        """The first token behind a text, by the call that an app makes."""
        return self.writer.generate(text, max_new_tokens=1, temperature=0.0).tokens[0]


class LlamaCpp(Engine):
    """A GGUF file in llama.cpp by its C interface, with its own defaults but for threads and context."""

    def __init__(self, spec: Spec) -> None:
        import llama_cpp

        self.library = llama_cpp
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(spec["path"].encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {spec['path']}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = spec["context"]
        settings.n_threads = settings.n_threads_batch = spec["threads"]
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.greedy = llama_cpp.llama_sampler_init_greedy()
        self.threads = spec["threads"]
        self.batch = int(llama_cpp.llama_n_batch(self.context))

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        return f"llama-cpp-python {self.library.__version__}, {self.threads} threads"

    def ids(self, text: str) -> list[int]:
        """A text's tokens."""
        vocabulary, content = self.library.llama_model_get_vocab(self.model), text.encode()
        found = (self.library.llama_token * (len(content) + 8))()
        count = self.library.llama_tokenize(vocabulary, content, len(content), found, len(found), False, False)
        return list(found[:count])

    def write(self, ids: Sequence[int], tokens: int) -> Turn:
        """Go on from ``ids``."""
        library, context = self.library, self.context
        library.llama_memory_clear(library.llama_get_memory(context), False)
        one = (library.llama_token * 1)()
        written: list[int] = []
        steps = []
        begun = time.perf_counter()
        for start in range(0, len(ids), self.batch):
            part = ids[start : start + self.batch]
            held = (library.llama_token * len(part))(*part)  # a batch only points to its tokens
            self._decode(library.llama_batch_get_one(held, len(part)))
        written.append(library.llama_sampler_sample(self.greedy, context, -1))
        before = time.perf_counter()
        prefill = before - begun
        for _ in range(tokens - 1):
            one[0] = written[-1]
            self._decode(library.llama_batch_get_one(one, 1))
            written.append(library.llama_sampler_sample(self.greedy, context, -1))
            after = time.perf_counter()
            steps.append((after - before) * 1000)
            before = after
        return Turn(prefill * 1000, steps, written)

    def _decode(self, batch: Any) -> None:
        status = self.library.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode failed with status {status}")

    def logits(self, ids: Sequence[int]) -> Iterator[Logits]:
        """The logits behind each of the tokens."""
        library = self.library
        library.llama_memory_clear(library.llama_get_memory(self.context), False)
        for start in range(0, len(ids), self.batch):
            part = ids[start : start + self.batch]
            batch = library.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for place, token in enumerate(part):
                batch.token[place], batch.pos[place], batch.logits[place] = token, start + place, 1
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = 0
            self._decode(batch)
            library.llama_batch_free(batch)
            pointer = library.llama_get_logits(self.context)
            yield np.ctypeslib.as_array(pointer, (len(part), self.vocabulary)).copy()


class OnnxRuntimeGenai(Engine):
    """A folder of ONNX Runtime GenAI's model builder, with its own defaults but for threads and context."""

    def __init__(self, spec: Spec) -> None:
        import onnxruntime_genai

        self.library, self.context, self.threads = onnxruntime_genai, spec["context"], spec["threads"]
        config = onnxruntime_genai.Config(spec["path"])
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": self.threads}}}}))
        self.model = onnxruntime_genai.Model(config)
        self.tokenizer = onnxruntime_genai.Tokenizer(self.model)

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        return f"onnxruntime-genai {self.library.__version__}, {self.threads} threads, {self.model.device_type}"

    def ids(self, text: str) -> list[int]:
        """A text's tokens."""
        return [int(token) for token in self.tokenizer.encode(text)]

    def _generator(self) -> Any:
        settings = self.library.GeneratorParams(self.model)
        # A least length keeps the end token from being chosen; the longest is what the cache is made for.
        settings.set_search_options(do_sample=False, min_length=self.context, max_length=self.context)
        return self.library.Generator(self.model, settings)

    def write(self, ids: Sequence[int], tokens: int) -> Turn:
        """Go on from ``ids``."""
        generator = self._generator()
        prompt = np.asarray([ids], np.int32)
        steps = []
        begun = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        before = time.perf_counter()
        prefill = before - begun
        for _ in range(tokens - 1):
            generator.generate_next_token()
            after = time.perf_counter()
            steps.append((after - before) * 1000)
            before = after
        return Turn(prefill * 1000, steps, [int(token) for token in generator.get_sequence(0)[len(ids) :]])

    def logits(self, ids: Sequence[int]) -> Iterator[Logits]:
        """The logits behind each of the tokens."""
        generator = self._generator()
        generator.append_tokens(np.asarray([ids], np.int32))
        yield np.asarray(generator.get_output("logits"), np.float32)[0]


class OpenVinoGenai(Engine):
    """A folder of Optimum Intel's export in OpenVINO GenAI's LLMPipeline, with its own defaults but for threads.

    Times are the pipeline's own, which leave Python out. Logits come from the same file on the same OpenVINO without
    the pipeline, which keeps them to itself.
    """

    def __init__(self, spec: Spec) -> None:
        import openvino_genai

        self.library, self.spec = openvino_genai, spec
        settings = {"INFERENCE_NUM_THREADS": spec["threads"], "PERFORMANCE_HINT": "LATENCY"}
        if spec.get("cache") is not None:
            settings["CACHE_DIR"] = spec["cache"]
        self.settings = settings
        self.pipeline = openvino_genai.LLMPipeline(spec["path"], "CPU", **settings)
        self.tokenizer = self.pipeline.get_tokenizer()

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        return f"openvino-genai {self.library.__version__.partition('-')[0]}, {self.spec['threads']} threads"

    def ids(self, text: str) -> list[int]:
        """A text's tokens."""
        found = self.tokenizer.encode(text, add_special_tokens=False).input_ids.data[0]
        return [int(token) for token in found]

    def write(self, ids: Sequence[int], tokens: int) -> Turn:
        """Go on from ``ids``."""
        import openvino

        row = np.asarray([ids], np.int64)
        given = self.library.TokenizedInputs(openvino.Tensor(row), openvino.Tensor(np.ones_like(row)))
        settings = self.library.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        found = self.pipeline.generate(given, settings)
        raw = found.perf_metrics.raw_metrics  # in microseconds
        steps = [duration / 1000 for duration in list(raw.m_durations)[1 - tokens :]] if tokens > 1 else []
        return Turn(raw.m_times_to_first_token[0] / 1000, steps, [int(token) for token in found.tokens[0]])

    def logits(self, ids: Sequence[int]) -> Iterator[Logits]:
        """The logits behind each of the tokens."""
        import openvino

        if not hasattr(self, "request"):
            model = Path(self.spec["path"]) / "openvino_model.xml"
            settings = {name: value for name, value in self.settings.items() if name != "CACHE_DIR"}
            self.request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        row = np.asarray([ids], np.int64)
        self.request.reset_state()
        feeds = {
            "input_ids": row,
            "attention_mask": np.ones_like(row),
            "position_ids": np.arange(len(ids))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        yield np.asarray(self.request.infer(feeds)[0], np.float32)[0]


KINDS: dict[str, type[Engine]] = {
    "edgescribe": Edgescribe,
    "llama.cpp": LlamaCpp,
    "onnxruntime-genai": OnnxRuntimeGenai,
    "openvino-genai": OpenVinoGenai,
}
