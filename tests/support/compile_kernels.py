"""Compile every kernel for a GPU that need not be there.

`python -m tests.support.compile_kernels 90` compiles for compute capability 9.0. It prints for
each its name, the size of its machine code, and how many of its loads and stores move 16 bytes a thread.
"""

from __future__ import annotations

import re
import sys

from triton import compiler
from triton.backends.compiler import GPUTarget

from model.inference.kernels import maps, nms, resize, roi_align

SIZES = {"height": "i32", "width": "i32", "scale": "fp32"}
LEVELS = {f"{name}{level}": kind for level in range(4) for name, kind in SIZES.items()}
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
OWN_OPTIONS = {"nms scan": {"num_warps": 1}}
OVERLAPS = {
    "boxes": "*fp32", "valid": "*i8", "overlaps": "*i64", "count": "i32", "blocks": "i32", "threshold": "fp32",
}  # fmt: skip
ADDED = dict.fromkeys(("maps", "bias", "coarser"), "*fp16") | {"width": "i32"}
TILE = {"CHANNELS": 256, "COLUMNS": 16, "BLOCK": 256}
KERNELS = {
    "nms overlaps": (nms._overlap_kernel, OVERLAPS | {"labels": "*i1"}, {"HAS_LABELS": False, "BLOCK": 64}),
    "nms overlaps of labels": (nms._overlap_kernel, OVERLAPS | {"labels": "*i32"}, {"HAS_LABELS": True, "BLOCK": 64}),
    "nms scan": (
        nms._scan_kernel,
        {"valid": "*i8", "overlaps": "*i64", "keep": "*i8", "count": "i32", "blocks": "i32"},
        {"BLOCKS": 16, "BLOCK": 64},
    ),
    "roi_align": (
        roi_align._roi_align_kernel,
        {f"level{n}": "*fp16" for n in range(4)} | LEVELS
        | {"boxes": "*fp32", "image_of": "*i64", "level_of": "*i64", "pooled": "*fp16", "channels": "i32"},
        {"OUT_H": 7, "OUT_W": 7, "SAMPLES": 2, "BLOCK": 256},
    ),
    "resize": (
        resize._resize_kernel,
        {"table": "*i64", "batch": "*fp16", "height": "i32", "width": "i32"}
        | {f"{name}{channel}": "fp32" for name in ("mean", "std") for channel in range(3)},
        {"COLUMNS": 8, "BLOCK": 256},
    ),
    "pyramid level": (
        maps._add_kernel, ADDED, {"HAS_BIAS": True, "HAS_COARSER": True, **TILE},
    ),
    "bias": (
        maps._add_kernel, ADDED, {"HAS_BIAS": True, "HAS_COARSER": False, **TILE},
    ),
    "max_pool": (
        maps._max_pool_kernel,
        {"maps": "*fp16", "pooled": "*fp16", "height": "i32", "width": "i32"},
        {"CHANNELS": 64, "COLUMNS": 64, "BLOCK": 64},
    ),
}  # fmt: skip


def main() -> None:
    for name, (kernel, signature, constants) in KERNELS.items():
        ordered = {arg: signature.get(arg, "constexpr") for arg in kernel.arg_names}
        # Tensors begin at multiples of 16 bytes.
        aligned = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(ordered.values()) if kind.startswith("*")}
        source = compiler.ASTSource(kernel, ordered, constexprs=constants, attrs=aligned)
        compiled = compiler.compile(
            source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=OPTIONS | OWN_OPTIONS.get(name, {})
        )
        wide = re.findall(r"(?:ld|st)\.global[\w.:]*\.v4\.b32", compiled.asm["ptx"])
        print(f"{name}: {len(compiled.asm['cubin'])} bytes, {len(wide)} wide")


if __name__ == "__main__":
    main()
