"""Constants of an ``.onnx`` file in memory that is mapped here: as the file has them, and let go of unharmed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from edgescribe.errors import BundleError
from edgescribe.runtimes.onnxruntime_decoder_weights import MappedConstants
from onnx import TensorProto, helper

ROWS, WIDTH = 4096, 256


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """``table[ids]``, the table in the file beside the graph."""
    path = tmp_path / "graph.onnx"
    np.arange(ROWS * WIDTH, dtype=np.float32).tofile(path.with_name("graph.onnx.data"))
    table = TensorProto(name="table", dims=[ROWS, WIDTH], data_location=TensorProto.EXTERNAL)
    table.data_type = TensorProto.FLOAT
    for key, value in (("location", "graph.onnx.data"), ("offset", "0"), ("length", str(4 * ROWS * WIDTH))):
        table.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"])], "rows",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", WIDTH])],
        [table, helper.make_tensor("small", TensorProto.FLOAT, [1], [1.0])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def constants_of(graph: Path) -> MappedConstants:
    return MappedConstants(graph, graph.with_name("graph.onnx.data"))


def resident_bytes(file: Path) -> int:
    """What of a file's mappings lies in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def test_an_engine_reads_constants_that_are_let_go_of_all_the_while(graph: Path) -> None:
    constants, options = constants_of(graph), onnxruntime.SessionOptions()
    assert list(constants.arrays) == ["table"]
    constants.give_to(onnxruntime, options)
    with constants.releasing():
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        ids = np.random.default_rng(0).integers(0, ROWS, 500)
        for _ in range(20):
            (rows,) = session.run(None, {"ids": ids})
            np.testing.assert_array_equal(rows, constants.arrays["table"][ids])
            constants.release()
    if sys.platform == "linux":
        assert resident_bytes(graph.with_name("graph.onnx.data")) == 0
        session.run(None, {"ids": np.arange(ROWS)})
        assert resident_bytes(graph.with_name("graph.onnx.data")) == 4 * ROWS * WIDTH


@pytest.mark.parametrize("size", [0, 1, 4 * ROWS * WIDTH - 1])
def test_a_data_file_that_was_cut_off_is_refused(graph: Path, size: int) -> None:
    data = graph.with_name("graph.onnx.data")
    data.write_bytes(data.read_bytes()[:size])
    with pytest.raises(BundleError, match="damaged"):
        constants_of(graph)


def test_constants_in_other_files_are_left_to_the_engine(graph: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.data"
    other.write_bytes(graph.with_name("graph.onnx.data").read_bytes())
    assert MappedConstants(graph, other).arrays == {}


def test_a_graph_that_was_cut_off_is_refused(graph: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:-7])
    with pytest.raises(BundleError, match="damaged"):
        constants_of(graph)
