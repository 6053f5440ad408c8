"""matplotlib figures as SVG that sits inside an HTML page and takes the page's colours.

Figures are drawn in stand-in colours, which become CSS variables of the page: one drawing is legible on a
light and on a dark ground. Text stays text, so it can be read aloud, found and copied.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure

from dmoe.disk.files import written_aside
from dmoe.report.numbers import clean

INK, MUTED, GRID, HEAT, GROUND = "#010101", "#020202", "#030303", "#040404", "#050505"
# One colour, dash and marker a run or expert: told apart without colour too.
SERIES = tuple(f"#0a00{index:02x}" for index in range(6))
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "X")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--rule)",
    HEAT: "var(--heat)",
    GROUND: "var(--ground)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}
# The page's colours on a light ground, for files that stand alone.
_LIGHT = {
    INK: "#1b1f24",
    MUTED: "#57606a",
    GRID: "#d5dae0",
    HEAT: "#2b7fc3",
    GROUND: "#ffffff",
    **dict(zip(SERIES, ("#0072b2", "#c24f00", "#00845f", "#a64d86", "#7a6a00", "#4d5966"), strict=True)),
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dmoe",
    "text.parse_math": False,  # a name with a dollar sign is a name
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib in the page's style; nothing of the caller's settings is changed for good."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # The browser has the letters that the layout font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def label(text: str, length: int = 26) -> str:
    """A name short enough for a figure; the tables hold it whole."""
    text = clean(text).replace("\n", " ")
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-(length // 2 - 1) :]}"


def inline(figure: Figure, key: str, description: str) -> Markup:
    """The figure as one `<svg>` element with a text alternative.

    `key` is unique on the page: two drawings on one page may not share an id.
    """
    buffer = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    _make_ids_unique(root, key)
    view_box = root.get("viewBox", "0 0 1 1")
    width_pt = float(view_box.split()[2])
    root.attrib.clear()
    root.attrib.update(
        {
            "viewBox": view_box,
            "role": "img",
            "aria-label": clean(description),
            "style": f"width: {width_pt * 4 / 3:.0f}px",
        }
    )
    text = ElementTree.tostring(root, encoding="unicode")
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    return Markup(text)  # written by ElementTree, which escapes text and attributes


def write_figure(figure: Figure, stem: Path) -> None:
    """The figure as `stem`.svg and `stem`.png, in light colours; call inside `drawing()`."""
    figure.draw_without_rendering()
    for artist in figure.findobj():
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            getter, setter = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
            if getter is None or setter is None:
                continue
            colours = to_rgba_array(getter())
            changed = [_LIGHT.get(to_hex(colour)) for colour in colours]
            if changed and all(changed):
                # The alpha of a heat map's cell is its value.
                new = [(str(name), float(colour[3])) for name, colour in zip(changed, colours, strict=True)]
                setter(new[0] if len(new) == 1 else new)
    # An alpha of the artist's own would come on top of its colour's, which has it already.
    for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 200})):
        path = stem.with_name(stem.name + suffix)
        with written_aside(path) as aside:
            figure.savefig(aside, format=suffix[1:], facecolor="white", **options)


def _strip(element: ElementTree.Element) -> None:
    """Leaves out namespaces, metadata and the style sheet, which would act on the whole page."""
    element.tag = element.tag.removeprefix(_SVG)
    if _LINK in element.attrib:
        element.set("href", element.attrib.pop(_LINK))
    for child in list(element):
        name = child.tag.removeprefix(_SVG)
        if name in ("metadata", "style"):
            element.remove(child)
            continue
        _strip(child)
        if name == "defs" and not len(child):
            element.remove(child)


def _make_ids_unique(root: ElementTree.Element, key: str) -> None:
    """Keeps the ids that are pointed at, each with `key` before it."""
    used = {
        value.removeprefix("url(").rstrip(")").removeprefix("#")
        for element in root.iter()
        for name, value in element.attrib.items()
        if name in ("href", "clip-path")
    }
    for element in root.iter():
        own = element.get("id")
        if own in used:
            element.set("id", f"{key}-{own}")
        elif own is not None:
            del element.attrib["id"]
        if "href" in element.attrib:
            element.set("href", f"#{key}-{element.attrib['href'].removeprefix('#')}")
        if "clip-path" in element.attrib:
            target = element.attrib["clip-path"].removeprefix("url(#").removesuffix(")")
            element.set("clip-path", f"url(#{key}-{target})")
