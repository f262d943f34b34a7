"""Measures how many multiply-accumulates a second one core reaches in a dense layer by an engine's own kernels."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, WIDTH = 128, 512  # 128 tokens through a layer of 512 x 512, the size of a small student's
MACS = ROWS * WIDTH * WIDTH


def engine_gmac_s(*, int8: bool, seconds: float) -> tuple[float, str] | None:
    """The rate in 10^9 a second, with the engine that reached it and its version; None without such an engine.

    ONNX Runtime is taken before OpenVINO. LiteRT is not asked: its models cannot be put together without its
    converter.

    Args:
        int8: uint8 activations by int8 weights; float32 by float32 otherwise.
        seconds: how long to repeat the call.
    """
    for start in (onnxruntime_call, openvino_call):
        try:
            call, engine = start(int8)
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


def onnxruntime_call(int8: bool) -> tuple[Callable[[], object], str]:
    """A call that runs the layer once on one thread of ONNX Runtime and returns its outputs; the engine's name."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(_dense_onnx(int8), options, providers=["CPUExecutionProvider"])
    feeds = {"x": activations(int8)}
    return lambda: session.run(None, feeds), f"ONNX Runtime {ort.__version__}"


def openvino_call(int8: bool) -> tuple[Callable[[], object], str]:
    """As :func:`onnxruntime_call`, by OpenVINO."""
    import openvino as ov
    from openvino import opset8 as ops

    x = ops.parameter([ROWS, WIDTH], np.float32, name="x")
    inputs, layer = x, ops.constant(weights(int8))
    if int8:
        inputs = ops.fake_quantize(x, np.float32(0), np.float32(255), np.float32(0), np.float32(255), 256)
        layer = ops.multiply(ops.convert(layer, "f32"), ops.constant(np.float32(1)))
    model = ov.Model([ops.matmul(inputs, layer, False, False)], [x])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    feeds: list[Any] = [activations(int8).astype(np.float32)]
    return lambda: list(request.infer(feeds).values()), f"OpenVINO {ov.__version__}"


def weights(int8: bool) -> NDArray[Any]:
    """``[WIDTH, WIDTH]`` whole numbers in [-64, 63], int8 or float32; within 7 bits no x86 kernel saturates."""
    values = np.random.default_rng(0).integers(-64, 64, (WIDTH, WIDTH), dtype=np.int8)
    return values if int8 else values.astype(np.float32)


def activations(int8: bool) -> NDArray[Any]:
    """``[ROWS, WIDTH]`` whole numbers in [0, 255], uint8 or float32."""
    values = np.random.default_rng(1).integers(0, 256, (ROWS, WIDTH), dtype=np.uint8)
    return values if int8 else values.astype(np.float32)


def _dense_onnx(int8: bool) -> bytes:
    """A model of one MatMulInteger or MatMul node as protocol buffer bytes: a device has no onnx package.

    Field numbers and element types are those of onnx.proto.
    """
    float32 = 1
    x_type, w_type, y_type = (2, 3, 6) if int8 else (float32, float32, float32)
    operator = b"MatMulInteger" if int8 else b"MatMul"
    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, operator)
    shape, content = _field(1, WIDTH) + _field(1, WIDTH), weights(int8).tobytes()
    graph = (
        _field(1, node)
        + _field(2, b"dense")
        + _field(5, shape + _field(2, w_type) + _field(8, b"w") + _field(9, content))
        + _field(11, _value_info(b"x", x_type))
        + _field(12, _value_info(b"y", y_type))
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
