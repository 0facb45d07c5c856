#!/usr/bin/env python3
"""Prints the vectors of tests/dequantize.rs, from the `gguf` package's own formulas.

    pip install gguf numpy && python3 engine/kernels/tests/dequantize.py
"""

import struct

import gguf
import numpy as np

HALVES = {
    "Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2],
    "Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208], "F16": range(0, 64, 2), "BF16": [], "F32": [],
}
SCALES = [0.0078125, -0.03369140625]
BLOCKS = 3

for name, halves in HALVES.items():
    ty = gguf.GGMLQuantizationType[name]
    block = 64 if name in ("F16", "BF16", "F32") else gguf.GGML_QUANT_SIZES[ty][1]
    data = bytearray((i * i * 7 + i * 31 + (i >> 5) * 11 + 5) & 0xBF for i in range(BLOCKS * block))
    for b in range(BLOCKS):
        for n, at in enumerate(halves):
            struct.pack_into("<e", data, b * block + at, SCALES[n % 2] * (b + 1))
    values = gguf.quants.dequantize(np.frombuffer(bytes(data), np.uint8), ty).astype(np.float32).reshape(-1)
    digest = 0xCBF29CE484222325
    for byte in values.astype("<f4").tobytes():
        digest = ((digest ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    rust = name.replace("_K", "K")
    print(f"    (WeightType::{rust}, {len(values)}, {float(values[1])!r}, 0x{digest:016x}),")
