"""Post-training int8 by NNCF; run by ``classify.py`` with the interpreter of the peers' environment.

    python nncf_quantize.py MODEL.xml IDS.json OUT.xml

``IDS.json``: a list of texts' token ids to calibrate on, all of which are used. Settings are NNCF's for transformers
(``model_type``: SmoothQuant, symmetric activations, weights per channel, fast bias correction).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def quantize(model: Path, ids: Path, out: Path) -> None:
    """Read a model, calibrate, and write it quantised."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO then reports nothing
    import nncf  # type: ignore[import-not-found]
    import numpy as np
    import openvino

    feeds = []
    for row in json.loads(ids.read_text(encoding="utf-8")):
        values = np.asarray([row], np.int64)
        feeds.append(
            {
                "input_ids": values,
                "attention_mask": np.ones_like(values),
                "token_type_ids": np.zeros_like(values),
            }
        )
    quantized = nncf.quantize(
        openvino.Core().read_model(model),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
    )
    openvino.save_model(quantized, out)


if __name__ == "__main__":
    quantize(*map(Path, sys.argv[1:4]))
