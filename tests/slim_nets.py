"""A small network with channels to remove, and data for it."""

import numpy as np
from builders import Array, normal
from quantizing import parse

from onnxdrp.model import Model

__all__ = ["images", "residual_net"]


def residual_net(seed: int = 0, batch: str = "N") -> Model:
    """Five Conv, of which two share a residual sum, and a Gemm; 10 classes."""
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g '
        f"(float[{batch}, 3, 8, 8] x) => (float[{batch}, 10] y)"
        "{ a = Conv<pads=[1,1,1,1]>(x, wa, ba) r = Relu(a)"
        "  b = Conv<pads=[1,1,1,1]>(r, wb, bb) s = Relu(b)"
        "  c = Conv<pads=[1,1,1,1]>(s, wc, bc) t = Relu(c)"
        "  d = Conv<pads=[1,1,1,1]>(t, wd, bd) u = Add(s, d) v = Relu(u)"
        "  e = Conv(v, we, be) h = Relu(e)"
        "  p = GlobalAveragePool(h) f = Flatten(p) y = Gemm(f, wg, bg) }"
    )
    shapes = {
        "wa": (8, 3, 3, 3), "ba": (8,), "wb": (16, 8, 3, 3), "bb": (16,),
        "wc": (24, 16, 3, 3), "bc": (24,), "wd": (16, 24, 3, 3), "bd": (16,),
        "we": (32, 16, 1, 1), "be": (32,), "wg": (32, 10), "bg": (10,),
    }  # fmt: skip
    return parse(text, {n: normal(s, seed + i) for i, (n, s) in enumerate(shapes.items())})


def images(count: int = 60, seed: int = 9) -> dict[str, Array]:
    """A batch of noise about colours, which samples differ in."""
    random = np.random.default_rng(seed)
    colours = 2 * random.standard_normal((count, 3, 1, 1))
    return {"x": (colours + random.standard_normal((count, 3, 8, 8))).astype(np.float32)}
