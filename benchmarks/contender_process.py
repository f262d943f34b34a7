"""The process of one contender: loads a model, answers one text, then does what stdin asks for.

Started by ``interleaved_run.py`` with one argument, JSON: ``kind`` (``torch``, ``onnxruntime``, ``openvino`` or
``edgescribe``), ``path``, ``threads``, and for the peers ``tokenizer``, ``labels`` and ``max_tokens``; for
``edgescribe`` ``runtime`` and ``precision``; ``text`` is the first text. It imports what its kind needs and no more, so
that its memory and start-up time are those of an app that uses it.

Lines of JSON go out: one when the first text is answered, then one for each line that comes in:

- ``{"texts": […], "tokens": 128}``: what to time: the ids of these texts, repeated and cut to so many; answers
  ``{"rows": n}``;
- ``{"calls": 64, "seconds": 1.0, "warmup": 8}``: a burst; answers ``{"latencies_ms": […]}``;
- ``{"classify": ["…", …]}``: answers ``{"labels": […], "peak_rss_mib": …}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

Spec = dict[str, Any]
Feeds = dict[str, Any]


def main() -> None:
    """Answer the first text and then one line after the other, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines print to stdout
    spec = json.loads(sys.argv[1])
    started = time.perf_counter()
    contender: Any = KINDS[spec["kind"]](spec)
    loaded = time.perf_counter()
    label = contender.classify(spec["text"])
    answered_ns = time.monotonic_ns()
    ready = {
        "label": label,
        "answered_ns": answered_ns,
        "load_ms": (loaded - started) * 1000,
        "engine": contender.engine(),
    }
    print(json.dumps(ready), file=answers)
    feeds: list[Feeds] = []
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any]
        if "tokens" in asked:
            rows = [exactly(contender.ids(text), asked["tokens"]) for text in asked["texts"]]
            feeds = [contender.feeds(row) for row in rows]
            answer = {"rows": len(feeds)}
        elif "calls" in asked:
            answer = {"latencies_ms": burst(contender.run, feeds, asked)}
        else:
            labels = [contender.classify(text) for text in asked["classify"]]
            answer = {"labels": labels, "peak_rss_mib": peak_rss_mib()}
        print(json.dumps(answer), file=answers)


def exactly(ids: list[int], tokens: int) -> list[int]:
    """The ids, repeated and cut to a number of tokens."""
    return (ids * (tokens // len(ids) + 1))[:tokens]


def burst(run: Callable[[Feeds], Any], feeds: list[Feeds], asked: dict[str, Any]) -> list[float]:
    """Latency in milliseconds of each call, one after the other, after a warm-up."""
    for turn in range(asked["warmup"]):
        run(feeds[turn % len(feeds)])
    latencies: list[float] = []
    begun = time.perf_counter()
    while True:
        turn_feeds = feeds[len(latencies) % len(feeds)]
        before = time.perf_counter()
        run(turn_feeds)
        after = time.perf_counter()
        latencies.append((after - before) * 1000)
        if len(latencies) >= asked["calls"] and after - begun >= asked["seconds"]:
            return latencies


def peak_rss_mib() -> float:
    """Peak resident memory of this process since it was started, as Linux counts it."""
    with open("/proc/self/status") as file:  # noqa: PTH123 (pathlib is an import that the contender may not need)
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise OSError("this system does not tell a process's peak memory")


class Edgescribe:
    """Our bundle, by the calls that an app makes."""

    def __init__(self, spec: Spec) -> None:
        import edgescribe

        self.student: Any = edgescribe.load(
            spec["path"], runtime=spec["runtime"], precision=spec["precision"], threads=spec["threads"]
        )
        # What classify calls: its time without the tokenizer, as the peers' is.
        self.session: Any = self.student._session

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        used = self.student.effective
        return f"{used.engine} {used.engine_version}, {used.threads} threads, {used.provider or used.device}"

    def ids(self, text: str) -> list[int]:
        """A text's token ids."""
        return list(self.student.tokenizer.tokenize([text])[0].ids)

    def feeds(self, ids: list[int]) -> Feeds:
        """Inputs of batch 1, ready for :meth:`run`."""
        import numpy as np

        row = np.asarray([ids], np.int32)
        values = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        return {spec.name: values[spec.name] for spec in self.session.inputs}

    def run(self, feeds: Feeds) -> Any:
        """Run the artifact."""
        return self.session.run(feeds)

    def classify(self, text: str) -> str:
        """The likeliest label."""
        return str(self.student.classify(text).label)


class Peer(ABC):
    """A peer with the student's tokenizer.json; its kinds say how to open the model, feed and run it."""

    def __init__(self, spec: Spec) -> None:
        import tokenizers

        self.labels = spec["labels"]
        self.tokenizer = tokenizers.Tokenizer.from_file(spec["tokenizer"])
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(spec["max_tokens"])
        self.open(spec)

    @abstractmethod
    def open(self, spec: Spec) -> None:
        """Load the model."""

    @abstractmethod
    def feeds(self, ids: list[int]) -> Feeds:
        """Inputs of batch 1, ready for :meth:`run`."""

    @abstractmethod
    def run(self, feeds: Feeds) -> Any:
        """Logits ``[1, labels]``."""

    def ids(self, text: str) -> list[int]:
        """A text's token ids."""
        return list(self.tokenizer.encode(text).ids)

    def classify(self, text: str) -> str:
        """The likeliest label."""
        logits = self.run(self.feeds(self.ids(text)))
        return str(self.labels[int(logits[0].argmax())])


class Torch(Peer):
    """``transformers.AutoModelForSequenceClassification`` in float32, evaluating, in inference mode."""

    def open(self, spec: Spec) -> None:
        """Load the model."""
        import torch
        from transformers import AutoModelForSequenceClassification

        torch.set_num_threads(spec["threads"])
        self.torch = torch
        self.model = AutoModelForSequenceClassification.from_pretrained(spec["path"], dtype=torch.float32).eval()

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        attention = self.model.config._attn_implementation
        return f"torch {self.torch.__version__}, {self.torch.get_num_threads()} threads, attention {attention}"

    def feeds(self, ids: list[int]) -> Feeds:
        """Inputs of batch 1, ready for :meth:`run`."""
        row = self.torch.tensor([ids])
        return {
            "input_ids": row,
            "attention_mask": self.torch.ones_like(row),
            "token_type_ids": self.torch.zeros_like(row),
        }

    def run(self, feeds: Feeds) -> Any:
        """Logits ``[1, labels]``."""
        with self.torch.inference_mode():
            return self.model(**feeds).logits


class OnnxRuntime(Peer):
    """An ``.onnx`` file in ONNX Runtime's defaults but for the number of threads."""

    def open(self, spec: Spec) -> None:
        """Load the model."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec["threads"]
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(spec["path"], options, providers=["CPUExecutionProvider"])
        self.types = {node.name: node.type for node in self.session.get_inputs()}
        self.version = onnxruntime.__version__

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        threads = self.session.get_session_options().intra_op_num_threads
        return f"onnxruntime {self.version}, {threads} threads, {','.join(self.session.get_providers())}"

    def feeds(self, ids: list[int]) -> Feeds:
        """Inputs of batch 1, ready for :meth:`run`."""
        return numpy_feeds(ids, {name: "int32" if "32" in kind else "int64" for name, kind in self.types.items()})

    def run(self, feeds: Feeds) -> Any:
        """Logits ``[1, labels]``."""
        return self.session.run(None, feeds)[0]


class OpenVino(Peer):
    """An ``.xml`` file in OpenVINO, tuned for latency, in its own choice of precision for what is float."""

    def open(self, spec: Spec) -> None:
        """Load the model."""
        import openvino

        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": spec["threads"], "NUM_STREAMS": 1}
        config.update(spec.get("config", {}))
        self.compiled = openvino.Core().compile_model(spec["path"], "CPU", config)
        self.request = self.compiled.create_infer_request()
        self.types = {
            port.get_any_name(): "int32" if port.get_element_type().to_string() == "i32" else "int64"
            for port in self.compiled.inputs
        }
        self.version = openvino.get_version().partition("-")[0]

    def engine(self) -> str:
        """The engine, its version and how it runs, in words."""
        threads = self.compiled.get_property("INFERENCE_NUM_THREADS")
        precision = self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        return f"openvino {self.version}, {threads} threads, float as {precision}"

    def feeds(self, ids: list[int]) -> Feeds:
        """Inputs of batch 1, ready for :meth:`run`."""
        return numpy_feeds(ids, self.types)

    def run(self, feeds: Feeds) -> Any:
        """Logits ``[1, labels]``."""
        return self.request.infer(feeds)[0]


def numpy_feeds(ids: list[int], types: dict[str, str]) -> Feeds:
    """Inputs of one row of ids, by name, in each one's integer type."""
    import numpy as np

    values = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
    return {name: np.asarray([values[name]], kind) for name, kind in types.items()}


KINDS = {"edgescribe": Edgescribe, "torch": Torch, "onnxruntime": OnnxRuntime, "openvino": OpenVino}

if __name__ == "__main__":
    main()
