"""A GGUF file quantised by llama.cpp itself; run by ``generate.py`` with the interpreter of llama.cpp's environment.

    python llama_quantize.py FLOAT.gguf Q4_0 OUT.gguf
"""

from __future__ import annotations

import ctypes
import sys


def quantize(source: str, kind: str, out: str) -> None:
    """Write ``out`` in the kind ``Q4_0``, ``Q8_0``, …, with llama.cpp's own choices.

    Raises:
        RuntimeError: llama.cpp refuses.
    """
    import llama_cpp  # type: ignore[import-not-found]

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    status = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings))
    if status:
        raise RuntimeError(f"llama.cpp did not quantise {source} to {kind} (status {status}); it said why above")


if __name__ == "__main__":
    quantize(*sys.argv[1:4])
