"""Engines behind one contract: ONNX Runtime, OpenVINO and LiteRT. See :mod:`.contract` and :mod:`.registry`."""
