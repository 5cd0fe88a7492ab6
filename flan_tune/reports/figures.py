"""matplotlib figures as inline SVG, and the colour and marker each model keeps through the page.

Text stays text in the SVG, in the fonts of the page, so that figures are sharp, small and can be searched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from flan_tune.reports.page import escape

# Okabe and Ito 2008, "Color universal design", told apart with any common colour vision; the base model is grey.
# Markers differ too, for print without colour.
PALETTE = ("#7a8594", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#5a4fa2")
MARKERS = (("o", 6.5), ("s", 6.0), ("D", 5.8), ("^", 7.8), ("v", 7.8), ("P", 7.5), ("X", 7.5), ("h", 7.5))
INK, SOFT, RULE, BAND = "#1c2430", "#55606f", "#dfe4ea", "#f5f7f9"


def color_of(number: int) -> str:
    """Colour of model `number` (0 = the base)."""
    return PALETTE[number % len(PALETTE)]


def marker_of(number: int) -> tuple[str, float]:
    """Marker of model `number`, and its size in points, so that all look equally large."""
    return MARKERS[number % len(MARKERS)]


def matplotlib_is_there() -> bool:
    """Whether figures can be drawn; without matplotlib (extra `report`) the page shows numbers only."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


NO_MATPLOTLIB = "The figure is left out: matplotlib is not installed (pip install 'flan_tune[report]')."


def new_figure(width: float, height: float, heights: Sequence[float] = (1,), columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of `width` x `height` inches and its axes, row by row, plainly styled."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    drawing = Figure(figsize=(width, height), layout="constrained")
    grid = drawing.subplots(
        len(heights), columns, sharex="col", squeeze=False, gridspec_kw={"height_ratios": list(heights)}
    )
    axes = list(grid.flat)
    for axis in axes:
        _plain_style(axis)
    return drawing, axes


def plain_label(text: str) -> str:
    """`text` for a label of a figure: matplotlib would read what is between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def _plain_style(axis: Any) -> None:
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#a9b2bd")
    axis.tick_params(length=0, colors=SOFT, labelsize=10)
    axis.set_axisbelow(True)


def to_svg(drawing: Any, name: str, label: str) -> str:
    """The figure as an <svg> element for a page. `name` makes its ids unique there, `label` is what it shows.

    The same figure gives the same text: no date, no random ids.
    """
    import matplotlib

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        drawing.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return _for_page(buffer.getvalue(), name, label)


def _for_page(svg: str, name: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # HTML knows both
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()
