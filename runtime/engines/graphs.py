"""What the engine adds to a bundle's graphs at load, in ONNX's bytes: protobuf merges two messages that it reads as one.

A graph that ends in some value goes on from there; its own output stays, and nobody asks for it.
"""

from __future__ import annotations

_FLOAT, _INT32 = 1, 6  # of ONNX


def _field(number: int, content: bytes | str | int) -> bytes:
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low + _varint(value >> 7) if value > 0x7F else low


def _node(kind: str, inputs: str, output: str, **attributes: int | list[int]) -> bytes:
    names = b"".join(_field(1, name) for name in inputs.split()) + _field(2, output) + _field(3, output) + _field(4, kind)
    for name, value in attributes.items():
        ints = isinstance(value, list)
        values = b"".join(_field(8, number) for number in value) if isinstance(value, list) else _field(3, value)
        names += _field(5, _field(1, name) + values + _field(20, 7 if ints else 2))
    return _field(1, names)


def _value(role: int, name: str, dims: str, kind: int = _FLOAT) -> bytes:
    shape = b"".join(_field(1, _field(2, dim)) for dim in dims.split())
    return _field(role, _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape))))


def _input(name: str, dims: str = "", kind: int = _FLOAT) -> bytes:
    return _value(11, name, dims, kind)


def _output(name: str, dims: str) -> bytes:
    return _value(12, name, dims)


def _more(*parts: bytes) -> bytes:
    """What is added to a model's graph."""
    return _field(7, b"".join(parts))


def _model(*parts: bytes) -> bytes:
    """A model of its own: IR version 8, opset 17, as those of a bundle."""
    return _field(1, 8) + _field(8, _field(2, 17)) + _more(_field(2, "graph"), *parts)


# responses (1, H, W, B') → features (H·W, B'), float32, as the stages read them.
TRUNK_END = _more(
    _node("Cast", "responses", "wide", to=_FLOAT), _node("Flatten", "wide", "features", axis=3), _output("features", "P K")
)

# pixels (h, w) → finished (h, w): clip(pixels·gain + offset, low, high). The clip hides NaN, `means` (h) shows it.
STAGE_END = _more(
    _node("Mul", "pixels gain", "scaled"),
    _node("Add", "scaled offset", "grey"),
    _node("Max", "grey low", "above"),
    _node("Min", "above high", "finished"),
    _node("ReduceMean", "pixels", "means", axes=[-1], keepdims=0),
    *(_input(name) for name in ("gain", "offset", "low", "high")),
    _output("finished", "h w"),
    _output("means", "h"),
)

# Features of a whole image (P, K) from those of its background and of a part of it: `index` counts on from one to the other.
BLEND = _model(
    _node("Concat", "blank part", "both", axis=0),
    _node("Gather", "both index", "features", axis=0),
    *(_input("blank", "B K"), _input("part", "Q K"), _input("index", "P", _INT32), _output("features", "P K")),
)

PROBE = _model(_node("Relu", "x", "y"), _input("x", "N"), _output("y", "N"))  # any provider can run it
