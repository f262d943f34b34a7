"""LiteRT's adapter on ``tflite_runtime``, in an environment where only that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edgescribe
import numpy as np
import pytest

PACKAGES = ("tflite_runtime==2.14.0", "numpy<2", "tokenizers", "msgspec", "click")

RUN = """
import json, sys
from pathlib import Path
import numpy as np
from edgescribe.errors import EdgescribeError
from edgescribe.runtimes.contract import KnownAnswer, OpenOptions
from edgescribe.runtimes.registry import open_artifact, runtime

found = {"engine": runtime("litert").availability().engine}
feeds = {name: np.array(rows, np.int32) for name, rows in json.loads(sys.argv[1]).items()}
for path in sys.argv[2:]:
    try:
        session = open_artifact("litert", Path(path), OpenOptions(threads=1))
        found[Path(path).stem] = {name: value.tolist() for name, value in session.run(feeds).items()}
        wrong = KnownAnswer(feeds, {"logits": session.run(feeds)["logits"] + np.float32(1)}, 0.1)
        open_artifact("litert", Path(path), OpenOptions(threads=1, known_answers=(wrong,)))
    except EdgescribeError as error:
        found[Path(path).stem + " error"] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The interpreter of an environment with ``tflite_runtime`` alone, and this package on its path."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("tflite_runtime 2.14 has no wheel for this Python; 3.11 is the last")
    folder = tmp_path_factory.mktemp("tflite_runtime")
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv/bin/python"
    subprocess.run([interpreter, "-m", "pip", "install", "-q", *PACKAGES], check=True, capture_output=True)
    (folder / "path").mkdir()
    (folder / "path/edgescribe").symlink_to(Path(edgescribe.__file__).parent)
    return ["env", f"PYTHONPATH={folder / 'path'}", "PYTHONDONTWRITEBYTECODE=1", os.fspath(interpreter)]


@pytest.mark.slow
def test_static_int8_is_right_and_what_it_miscomputes_is_refused(
    python: list[str], write_tflite: Callable[..., Path], tiny: Any, feeds_for: Callable[..., dict[str, Any]]
) -> None:
    feeds = feeds_for((6, 11, 3))
    files = [str(write_tflite(kind)) for kind in ("float", "static", "dynamic", "int4")]
    as_lists = json.dumps({name: rows.tolist() for name, rows in feeds.items()})
    done = subprocess.run([*python, "-c", RUN, as_lists, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["engine"] == "tflite_runtime"
    for kind, quantized in (("float", False), ("static", True)):
        for output, expected in tiny.expected(feeds, quantized).items():
            kept = feeds["attention_mask"] == 1 if output == "tags" else slice(None)
            np.testing.assert_allclose(np.array(found[kind][output])[kept], expected[kept], atol=2e-5)
        assert found[f"{kind} error"][0] == "WrongAnswerError"
        assert "tflite_runtime 2.14.0" in found[f"{kind} error"][1]
    for kind in ("dynamic", "int4"):
        assert kind not in found
        name, message = found[f"{kind} error"]
        assert name == "EngineError"
        assert "zeros" in message
        assert "w8a8-static" in message


@pytest.mark.slow
def test_engines_that_are_missing_name_their_extra(python: list[str], tmp_path: Path) -> None:
    code = (
        "from edgescribe.runtimes.registry import availability, open_artifact\n"
        "from edgescribe.errors import MissingExtraError\n"
        "from pathlib import Path\n"
        "for name in ('onnxruntime', 'openvino'):\n"
        "    try: open_artifact(name, Path('x'))\n"
        "    except MissingExtraError as error: print(error)\n"
        "print([(a.runtime, a.available) for a in availability()])\n"
    )
    done = subprocess.run([*python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "edgescribe[onnxruntime]" in done.stdout
    assert "edgescribe[openvino]" in done.stdout
    assert "[('onnxruntime', False), ('openvino', False), ('litert', True)]" in done.stdout
