"""What the engines add to a bundle's graphs at load, in ONNX's bytes: protobuf merges two messages that it reads as one.

A graph that ends in some value goes on from there; its own output stays, and nobody asks for it.
"""

from __future__ import annotations

from functools import partial

FLOAT, INT32, FLOAT16 = 1, 6, 10  # as ONNX numbers its types


def field(number: int, content: bytes | str | int) -> bytes:
    """A field of a protobuf message."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low + _varint(value >> 7) if value > 0x7F else low


def node(kind: str, inputs: str, output: str, **attributes: int | list[int]) -> bytes:
    """An operator; `inputs` are names with spaces between them."""
    parts = [field(1, name) for name in inputs.split()] + [field(2, output), field(3, output), field(4, kind)]
    for name, value in attributes.items():
        if isinstance(value, list):
            values = b"".join(field(8, number) for number in value) + field(20, 7)
        else:
            values = field(3, value) + field(20, 2)
        parts.append(field(5, field(1, name) + values))
    return field(1, b"".join(parts))


def _value(role: int, name: str, dims: str = "", kind: int = FLOAT) -> bytes:
    shape = b"".join(field(1, field(2, dim)) for dim in dims.split())
    return field(role, field(1, name) + field(2, field(1, field(1, kind) + field(2, shape))))


graph_input, graph_output = partial(_value, 11), partial(_value, 12)


def _more(*parts: bytes) -> bytes:
    """What is added to a model's graph."""
    return field(7, b"".join(parts))


def model(*parts: bytes) -> bytes:
    """A model of its own: IR version 8, opset 17, as those of a bundle."""
    return field(1, 8) + field(8, field(2, 17)) + _more(field(2, "graph"), *parts)


# responses (1, H, W, B') → features (H·W, B'), float32, as the stages read them.
TRUNK_END = _more(
    node("Cast", "responses", "wide", to=FLOAT), node("Flatten", "wide", "features", axis=3), graph_output("features", "P K")
)


def planes(half: bool) -> bytes:
    """responses (1, H, W, B') → features (1, B', H, W): neighbouring threads of our kernels read neighbouring numbers."""
    made = node("Transpose", "responses", "features", perm=[0, 3, 1, 2])
    return _more(made, graph_output("features", "N K H W", FLOAT16 if half else FLOAT))


# pixels (h, w) → finished (h, w): clip(pixels·gain + offset, low, high). The clip hides NaN, `means` (h) shows it.
STAGE_END = _more(
    node("Mul", "pixels gain", "scaled"),
    node("Add", "scaled offset", "grey"),
    node("Max", "grey low", "above"),
    node("Min", "above high", "finished"),
    node("ReduceMean", "pixels", "means", axes=[-1], keepdims=0),
    *(graph_input(name) for name in ("gain", "offset", "low", "high")),
    *(graph_output("finished", "h w"), graph_output("means", "h")),
)

# Features of a whole image (P, K) from those of its background and of a part of it: `index` counts on from one to the other.
BLEND = model(
    node("Concat", "blank part", "both", axis=0),
    node("Gather", "both index", "features", axis=0),
    *(graph_input("blank", "B K"), graph_input("part", "Q K"), graph_input("index", "P", INT32)),
    graph_output("features", "P K"),
)

PROBE = model(node("Relu", "x", "y"), graph_input("x", "N"), graph_output("y", "N"))  # any provider can run it
