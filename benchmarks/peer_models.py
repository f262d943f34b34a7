"""Writes the models that the peers run, from the unpruned student; run by ``classify.py`` in a process of its own.

    python peer_models.py STUDENT OUT

Into the folder OUT:

- ``fp32/``: the checkpoint in float32, for torch;
- ``ours.onnx``: edgescribe's own float32 graph; ``torch.onnx``: ``torch.onnx.export``'s; ``fused.onnx``: that one after
  ONNX Runtime's transformer optimizer; and of each an ``…-int8.onnx`` by ``quantize_dynamic``;
- ``openvino.xml`` with its ``.bin``: ``openvino.convert_model`` straight from torch, for NNCF.
"""

from __future__ import annotations

import logging
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime.quantization as quantization
import onnxruntime.transformers.optimizer as transformer_optimizer
import torch
from edgescribe.converters.freeze import freeze_float
from edgescribe.converters.make_bundle import export
from edgescribe.converters.read import read_student
from numpy.typing import NDArray
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.fusion_options import FusionOptions
from transformers import AutoModelForSequenceClassification

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
NAMES = ("ours", "torch", "fused")
TOLERANCE = 1e-3


class Logits(torch.nn.Module):
    """A classifier of transformers that takes its inputs by name and gives logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """Logits ``[batch, labels]``."""
        given = dict(zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True))
        logits: torch.Tensor = self.model(**given).logits
        return logits


def write_all(source: Path, out: Path) -> None:
    student = read_student(source, "classify")
    student.save(out / "fp32", torch.float32)
    export(student, "onnxruntime", freeze_float(student), out / "ours.onnx")
    model = AutoModelForSequenceClassification.from_pretrained(out / "fp32", dtype=torch.float32).eval()
    ids = torch.randint(model.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    # One tensor each: the exporter takes inputs that are the same object for one input.
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    with torch.inference_mode():
        expected = model(**example).logits.numpy()
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        Logits(model).eval(),
        (),
        kwargs=example,
        dynamo=True,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(INPUTS, axes),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    program.save(out / "torch.onnx")
    fused = transformer_optimizer.optimize_model(
        str(out / "torch.onnx"),
        model_type="bert",
        num_heads=model.config.num_attention_heads,
        hidden_size=model.config.hidden_size,
        optimization_options=FusionOptions("bert"),
    )
    fused.save_model_to_file(str(out / "fused.onnx"))
    for name in NAMES:
        check_onnx(out / f"{name}.onnx", example, expected)
        quantize_dynamic(out / f"{name}.onnx", out / f"{name}-int8.onnx", prepared=name != "torch")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO then reports nothing
    import openvino

    converted = openvino.convert_model(Logits(model).eval(), example_input=example)
    openvino.save_model(converted, out / "openvino.xml", compress_to_fp16=False)
    exact = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    check(out / "openvino.xml", exact({name: value.numpy() for name, value in example.items()})[0], expected)


def check_onnx(path: Path, example: dict[str, torch.Tensor], expected: NDArray[np.float32]) -> None:
    """See that a float graph computes what torch does, so that no peer is quick by being wrong."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {
        node.name: example[node.name].numpy().astype(np.int32 if node.type == "tensor(int32)" else np.int64)
        for node in session.get_inputs()
    }
    check(path, session.run(None, feeds)[0], expected)


def check(path: Path, got: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    difference = float(np.abs(got - expected).max())
    if not difference < TOLERANCE:
        raise RuntimeError(f"{path.name} differs from torch by {difference:g} in its logits")


def quantize_dynamic(source: Path, target: Path, *, prepared: bool) -> None:
    """ONNX Runtime's post-training int8 with activations' grids taken while running.

    Weights int8 per output channel, which is the more accurate of its settings and no slower; embeddings too.
    ``prepared``: the graph is optimised already; otherwise ONNX Runtime's own preparation goes before.
    """
    if not prepared:
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        source = target
    model = onnx.load(source)
    # Shapes noted for the float graph contradict those after Gemm has been turned into MatMul.
    del model.graph.value_info[:]
    quantization.quantize_dynamic(
        model,
        target,
        per_channel=True,
        reduce_range=not _has_vnni(),
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gather"],
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _has_vnni() -> bool:
    """Whether sums of two u8 x s8 products keep their bits here: x86 without VNNI saturates them at 16."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return platform.machine() != "x86_64" or bool({"avx512_vnni", "avx_vnni"} & set(flags))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    write_all(Path(sys.argv[1]), Path(sys.argv[2]))
