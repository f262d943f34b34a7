"""Measures how many int8 multiply-accumulates a second one core reaches in a dense layer by an engine's kernels."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROWS, WIDTH = 128, 512  # 128 tokens through a layer of 512 x 512, the size of a small student's
MACS = ROWS * WIDTH * WIDTH


def int8_gmac_s(seconds: float) -> tuple[float, str] | None:
    """The rate in 10^9 a second, with the engine that reached it and its version; None without such an engine.

    ONNX Runtime is taken before OpenVINO. LiteRT is not asked: its models cannot be put together without its
    converter.
    """
    for start in (_onnxruntime, _openvino):
        try:
            call, engine = start()
        except Exception:  # noqa: BLE001 - an engine that is absent or broken in any way is just not used
            continue
        return best_rate(call, seconds), engine
    return None


def best_rate(call: Callable[[], object], seconds: float) -> float:
    """10^9 multiply-accumulates a second in the best of many calls: what the core can do when left alone."""
    call()
    best = float("inf")
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - start)
    return MACS / best / 1e9


def _onnxruntime() -> tuple[Callable[[], object], str]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(_dense_onnx(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": _activations()}
    return lambda: session.run(None, feeds), f"ONNX Runtime {ort.__version__}"


def _openvino() -> tuple[Callable[[], object], str]:
    import openvino as ov
    from openvino import opset8 as ops

    x = ops.parameter([ROWS, WIDTH], np.float32, name="x")
    quantised = ops.fake_quantize(x, np.float32(0), np.float32(4), np.float32(0), np.float32(4), 256)
    weights = ops.multiply(ops.convert(ops.constant(_weights()), "f32"), ops.constant(np.float32(0.01)))
    model = ov.Model([ops.matmul(quantised, weights, False, False)], [x])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    feeds: list[Any] = [_activations().astype(np.float32) / 64]
    return lambda: request.infer(feeds), f"OpenVINO {ov.__version__}"


def _weights() -> np.ndarray[Any, np.dtype[np.int8]]:
    # Within 7 bits: without a dot product x86 kernels saturate beyond that.
    return np.random.default_rng(0).integers(-64, 64, (WIDTH, WIDTH), dtype=np.int8)


def _activations() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (ROWS, WIDTH), dtype=np.uint8)


def _dense_onnx() -> bytes:
    """A model of one MatMulInteger node as protocol buffer bytes: the onnx package is not there on a device.

    Field numbers are those of onnx.proto.
    """
    uint8, int8, int32 = 2, 3, 6
    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, b"MatMulInteger")
    weights = (
        _field(1, WIDTH) + _field(1, WIDTH) + _field(2, int8) + _field(8, b"w") + _field(9, _weights().tobytes())
    )
    graph = (
        _field(1, node)
        + _field(2, b"dense")
        + _field(5, weights)
        + _field(11, _value_info(b"x", uint8))
        + _field(12, _value_info(b"y", int32))
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 13))


def _value_info(name: bytes, element: int) -> bytes:
    shape = b"".join(_field(1, _field(1, size)) for size in (ROWS, WIDTH))
    return _field(1, name) + _field(2, _field(1, _field(1, element) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
