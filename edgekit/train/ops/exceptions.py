"""Where a kernel falls short of the ONNX node tests, and which kernels have none."""

from __future__ import annotations

_BFLOAT16 = "one rounding step of bfloat16 apart: the expected values are rounded after every inner product"
_E8M0 = "float8e8m0 holds the scales of other formats, never a tensor that training writes"
_RUNTIME = "an operator of ONNX Runtime, compared with it"

#: Node tests that cannot pass: the operator and the reason.
NOT_PASSED: dict[str, tuple[str, str]] = {
    "test_attention_4d_causal_bf16": ("Attention", _BFLOAT16),
    "test_attention_4d_padded_kv_bf16": ("Attention", _BFLOAT16),
    "test_attention_4d_causal_padded_kv_bf16": ("Attention", _BFLOAT16),
    "test_attention_3d_causal_bf16": ("Attention", _BFLOAT16),
    "test_cast_e8m0_FLOAT_to_FLOAT8E8M0": ("Cast", _E8M0),
    "test_cast_e8m0_FLOAT16_to_FLOAT8E8M0": ("Cast", _E8M0),
}

#: Kernels without a one-node test in the onnx package, by domain and operator: what they are compared with.
WITHOUT_NODE_TEST: dict[tuple[str, str], str] = {
    ("", "GlobalLpPool"): "compared with its formula",
    ("", "SimplifiedLayerNormalization"): _RUNTIME,
    ("com.microsoft", "BiasGelu"): _RUNTIME,
    ("com.microsoft", "FastGelu"): _RUNTIME,
    ("com.microsoft", "Gelu"): _RUNTIME,
    ("com.microsoft", "QuickGelu"): _RUNTIME,
    ("com.microsoft", "SkipLayerNormalization"): _RUNTIME,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _RUNTIME,
}
