"""Reads a plot back out of its SVG: what was drawn, in the units of its own axes. For tests of figures.

Ticks give the axes: where a tick's mark stands, and the number written at it. Lines, bars and marks are then told in
those numbers. Images are decoded to pixels.
"""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Point = tuple[float, float]


@dataclass
class Shape:
    """A path or a mark within the axes; its colour is the page's variable, without `var(--…)`."""

    colour: str
    width: float
    points: list[Point]  # in pixels
    dashed: bool = False


@dataclass
class Plot:
    """One SVG of `figures`, read."""

    svg: str
    logarithmic: bool = False  # the y axis
    lines: list[Shape] = field(default_factory=list)  # unfilled paths, grid lines left out
    bars: list[Shape] = field(default_factory=list)  # filled paths
    marks: list[Shape] = field(default_factory=list)
    texts: list[tuple[str, Point]] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)  # [rows, columns, rgb], as seen
    _ticks: dict[str, dict[float, float]] = field(default_factory=lambda: {"x": {}, "y": {}})  # pixel → number

    def __post_init__(self) -> None:
        self._mark: Point | None = None
        self._walk(ET.fromstring(self.svg.replace("xlink:", "")), clipped=False)

    def _walk(self, element: Any, *, clipped: bool) -> None:
        clipped = clipped or "clip-path" in element.attrib
        style = dict(part.split(": ", 1) for part in element.get("style", "").split("; ") if ": " in part)
        if element.tag == "path" and clipped:
            self._path(element.get("d"), style)
        elif element.tag == "use":
            at = float(element.get("x")), float(element.get("y"))
            if clipped:
                self.marks.append(Shape(_colour(style.get("fill", "")), 0.0, [at]))
            else:
                self._mark = at
        elif element.tag == "text":
            self._text(element.text or "", (float(element.get("x")), float(element.get("y"))))
        elif element.tag == "image" and element.get("style"):
            self._image(element)
        for child in element:
            if element.tag != "defs":
                self._walk(child, clipped=clipped)

    def _path(self, d: str, style: dict[str, str]) -> None:
        points = [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", d)]
        if style.get("fill") != "none":
            self.bars.append(Shape(_colour(style.get("fill", "")), 0.0, points))
        elif _colour(style["stroke"]) != "line":
            width = float(style.get("stroke-width", 1))
            self.lines.append(Shape(_colour(style["stroke"]), width, points, "stroke-dasharray" in style))

    def _text(self, text: str, at: Point) -> None:
        self.texts.append((text, at))
        try:
            number = float(text.replace("−", "-"))
        except ValueError:
            self._mark = None
            return
        if self._mark is not None:
            axis = "x" if abs(self._mark[0] - at[0]) < 0.01 else "y"
            self._ticks[axis][self._mark["xy".index(axis)]] = number
        self._mark = None

    def _image(self, element: Any) -> None:
        from PIL import Image

        raw = base64.b64decode(element.get("href").partition("base64,")[2])
        pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).astype(int)
        _, _, _, down, _, _ = map(float, re.findall(r"[-\d.e]+", element.get("transform")))
        self.images.append(pixels if down > 0 else pixels[::-1])

    # ------------------------------------------------------------------ in the axes' own numbers

    def x(self, pixel: float) -> float:
        return self._scale("x")(pixel)

    def y(self, pixel: float) -> float:
        return self._scale("y")(pixel)

    def data(self, shape: Shape) -> list[Point]:
        return [(self.x(x), self.y(y)) for x, y in shape.points]

    def _scale(self, axis: str) -> Callable[[float], float]:
        curved = axis == "y" and self.logarithmic
        ticks = sorted(self._ticks[axis].items())
        (p0, v0), (p1, v1) = ticks[0], ticks[-1]
        if curved:
            v0, v1 = math.log10(v0), math.log10(v1)
        slope = (v1 - v0) / (p1 - p0)
        return lambda pixel: 10 ** (v0 + slope * (pixel - p0)) if curved else v0 + slope * (pixel - p0)

    def of(self, colour: str) -> list[Shape]:
        return [line for line in self.lines if line.colour == colour]

    def label_at(self, text: str) -> Point:
        (at,) = [where for said, where in self.texts if said == text]
        return at


def _colour(value: str) -> str:
    found = re.fullmatch(r"var\(--(.+)\)", value)
    return found[1] if found else value
