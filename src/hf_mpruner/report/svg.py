"""What SVG drawings are made of: elements whose texts cannot break the page, axes, and the colours of a heat map."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

# matplotlib's viridis at 0, 1/16, ..., 1: the picture files and the page have the same colours.
_VIRIDIS = (
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 "
    "fde725"
)
_ANCHORS = [tuple(int(colour[i : i + 2], 16) for i in (0, 2, 4)) for colour in _VIRIDIS.split()]

Element = ElementTree.Element


def viridis(value: float) -> str:
    """The colour of a similarity, as `#rrggbb`; what lies outside 0..1 has the colour of the nearer end."""
    place = min(max(value, 0.0), 1.0) * (len(_ANCHORS) - 1)
    low = min(int(place), len(_ANCHORS) - 2)
    share = place - low
    mixed = (round(a + (b - a) * share) for a, b in zip(_ANCHORS[low], _ANCHORS[low + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def drawing(width: float, height: float, label: str, kind: str) -> Element:
    """An empty picture with a text for who cannot see it.

    Args:
        width (`float`): natural width in CSS pixels; it shrinks with the page.
        height (`float`): natural height.
        label (`str`): what it shows.
        kind (`str`): its CSS class.
    """
    size = {"width": number(width), "height": number(height), "viewBox": f"0 0 {number(width)} {number(height)}"}
    return ElementTree.Element("svg", {"class": kind, "role": "img", "aria-label": label, **size})


def add(parent: Element, tag: str, text: str | None = None, /, **attributes: object) -> Element:
    """Put an element into another one.

    Args:
        parent (`Element`): where it goes.
        tag (`str`): its name.
        text (`str`, *optional*): what it says.
        attributes: numbers are rounded to two decimals, a trailing `_` is dropped, other ones become dashes.
    """
    plain = {
        name.rstrip("_").replace("_", "-"): number(value) if isinstance(value, int | float) else str(value)
        for name, value in attributes.items()
    }
    child = ElementTree.SubElement(parent, tag, plain)
    child.text = text
    return child


def with_title(element: Element, title: str) -> Element:
    """Give an element the text that is shown while the pointer rests on it."""
    add(element, "title", title)
    return element


def to_text(element: Element) -> str:
    """As markup for an HTML page."""
    return ElementTree.tostring(element, encoding="unicode")


def number(value: float) -> str:
    """Two decimals at most, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Axis:
    """Values to pixels.

    Args:
        low, high (`float`): values at the two ends.
        start, end (`float`): their pixels.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
