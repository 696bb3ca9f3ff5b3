"""Read drawings back: what is written where, how wide it is, and which marks stand at which place."""

import functools
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

SPACE = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Label:
    """A line of text with its box; `angle` of turned ones in degrees."""

    text: str
    corners: tuple[tuple[float, float], ...]
    angle: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@functools.cache
def font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, the widest of the fonts that the page asks for."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), round(size))


def size_of(svg: str) -> tuple[float, float]:
    """Width and height of a drawing."""
    _, _, width, height = map(float, ET.fromstring(svg).attrib["viewBox"].split())
    return width, height


def labels(svg: str) -> list[Label]:
    """Every line of text of a drawing, nested drawings moved to their place."""
    found: list[Label] = []
    _walk(ET.fromstring(svg), 0.0, 0.0, 13.0, found)
    return found


def _walk(element: ET.Element, dx: float, dy: float, size: float, found: list[Label]) -> None:
    name = element.tag.replace(SPACE, "")
    size = float(element.attrib.get("font-size", size))
    if name == "svg":
        dx += float(element.attrib.get("x", 0))
        dy += float(element.attrib.get("y", 0))
    if name == "text" and element.text:
        found.append(_label(element, dx, dy, size))
    for child in element:
        _walk(child, dx, dy, size, found)


def _label(element: ET.Element, dx: float, dy: float, size: float) -> Label:
    x, y = float(element.attrib["x"]), float(element.attrib["y"])
    width = font(size, "font-weight" in element.attrib).getlength(element.text or "")
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[element.attrib["text-anchor"]]
    corners = [(left, y - 0.72 * size), (left + width, y - 0.72 * size), (left + width, y), (left, y)]
    turned = re.match(r"rotate\((-?[\d.]+) ([\d.]+) ([\d.]+)\)", element.attrib.get("transform", ""))
    angle = float(turned[1]) if turned else 0.0
    if turned:
        around, radians = (float(turned[2]), float(turned[3])), math.radians(angle)
        corners = [_turned(corner, around, radians) for corner in corners]
    return Label(text=element.text or "", corners=tuple((a + dx, b + dy) for a, b in corners), angle=angle)


def _turned(point: tuple[float, float], around: tuple[float, float], radians: float) -> tuple[float, float]:
    x, y = point[0] - around[0], point[1] - around[1]
    return (
        around[0] + x * math.cos(radians) - y * math.sin(radians),
        around[1] + x * math.sin(radians) + y * math.cos(radians),
    )


def overlapping(found: list[Label]) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other; slanted ones are only compared with upright ones at their start."""
    straight = [label for label in found if label.angle in (0.0, -90.0)]
    pairs = []
    for n, first in enumerate(straight):
        for second in straight[n + 1 :]:
            a, b = first.box, second.box
            if a[0] < b[2] - 0.5 and b[0] < a[2] - 0.5 and a[1] < b[3] - 0.5 and b[1] < a[3] - 0.5:
                pairs.append((first.text, second.text))
    return pairs


def outside(found: list[Label], width: float, height: float) -> list[str]:
    """Texts that leave the drawing."""
    return [
        label.text
        for label in found
        if label.box[0] < -0.5 or label.box[1] < -0.5 or label.box[2] > width + 0.5 or label.box[3] > height + 0.5
    ]


def marks(svg: str, tag: str, title: str) -> list[dict[str, str]]:
    """Attributes of the elements whose title begins so."""
    text = svg if "xmlns" in svg else svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return [
        element.attrib
        for element in ET.fromstring(text).iter(f"{SPACE}{tag}")
        if (said := element.find(f"{SPACE}title")) is not None and (said.text or "").startswith(title)
    ]


def points(attributes: dict[str, str]) -> list[tuple[float, float]]:
    """The points of a line or a polygon."""
    return [tuple(map(float, pair.split(","))) for pair in attributes["points"].split()]  # type: ignore[misc]
