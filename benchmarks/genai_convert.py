"""The student in the forms of ONNX Runtime GenAI and OpenVINO GenAI; run by ``generate.py`` in the peers' own Python.

    python genai_convert.py KIND CHECKPOINT OUT

``KIND``: ``onnxruntime-int4`` (its model builder for the CPU: blocks of 32, accuracy level 4, which is its fastest),
``openvino-int8`` or ``openvino-int4`` (Optimum Intel's export with NNCF's weight compression; int4 symmetric, blocks of
32, embedding and head int8, as is its default). ``OUT`` is a folder that is made.
"""

from __future__ import annotations

import runpy
import sys
import tempfile

BUILDER = "onnxruntime_genai.models.builder"
EXPORTER = "optimum.commands.optimum_cli"
OPTIONS = {
    "onnxruntime-int4": ("--precision", "int4", "--execution_provider", "cpu",
                         "--extra_options", "int4_accuracy_level=4", "int4_block_size=32"),
    "openvino-int8": ("--weight-format", "int8", "--sym"),
    "openvino-int4": ("--weight-format", "int4", "--sym", "--group-size", "32", "--ratio", "1.0"),
}  # fmt: skip


def convert(kind: str, checkpoint: str, out: str) -> None:
    """Write the student's form ``kind`` into the folder ``out``, by the tool's own command line."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO then reports nothing
    with tempfile.TemporaryDirectory() as scratch:
        if kind.startswith("onnxruntime"):
            tool, where = BUILDER, ("--input", checkpoint, "--output", out, "--cache_dir", scratch)
        else:
            tool, where = EXPORTER, ("export", "openvino", "--model", checkpoint, "--task",
                                     "text-generation-with-past", out)  # fmt: skip
        sys.argv[:] = [tool, *where, *OPTIONS[kind]]
        runpy.run_module(tool, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    convert(*sys.argv[1:4])
