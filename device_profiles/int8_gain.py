"""How much faster int8 is than float32 in dense layers, by the CPU's features; for machines where no engine tells.

A dot-product instruction does four times as many multiply-accumulates as a float32 one of the same width; three is
what is left after packing and requantising. Without it, widening multiplies leave about one and a half. Both are
edgescribe's estimates, not any maker's figures.
"""

from __future__ import annotations

from collections.abc import Iterable

DOT_PRODUCT_FEATURES = frozenset({"asimddp", "i8mm", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})
WITH_DOT_PRODUCT = 3.0
WITHOUT_DOT_PRODUCT = 1.5

# Features that the engines' int8 and float32 kernels choose by; the others do not matter to a model.
KERNEL_FEATURES = (
    DOT_PRODUCT_FEATURES
    | {"asimd", "asimdhp", "fphp", "bf16", "sve", "sve2", "svei8mm", "sme", "sme2"}
    | {"sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
    | {"avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"}
)


def has_dot_product(features: Iterable[str]) -> bool:
    """Whether one of the features multiplies and sums groups of four int8 in one instruction."""
    return not DOT_PRODUCT_FEATURES.isdisjoint(features)


def int8_gain(features: Iterable[str]) -> float:
    """Estimated rate of int8 over float32 multiply-accumulates in dense layers."""
    return WITH_DOT_PRODUCT if has_dot_product(features) else WITHOUT_DOT_PRODUCT
