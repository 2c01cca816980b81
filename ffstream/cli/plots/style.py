"""How all pictures look, and how they are written: light, for print, with colours that colour-blind people can tell
apart (Okabe and Ito 2008, "Color Universal Design"). The same records make the same bytes."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ffstream.errors import Unavailable

BLUE: Final = "#0072B2"
VERMILLION: Final = "#D55E00"
GREEN: Final = "#009E73"
PURPLE: Final = "#CC79A7"
SKY: Final = "#56B4E9"
ORANGE: Final = "#E69F00"
GREY: Final = "#666666"

# The two sides of what a layer compares.
RIGHT: Final = BLUE
WRONG: Final = VERMILLION
MARGIN: Final = "#000000"
SIDES: Final = {
    "labels": ("right label", "wrong labels"),
    "groups": ("units of the right label", "units of wrong labels"),
    "images": ("real images", "negative images"),
}

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9,
    "grid.color": "#DDDDDD",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "ffstream",
}


@contextmanager
def style() -> Iterator[None]:
    """In the block, figures are made and saved in this style, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG or SVG file, by its suffix. Raises Unavailable."""
    no_date: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    try:
        figure.savefig(path, metadata=no_date)
    except OSError as error:
        raise Unavailable(
            f"{path}: {error.strerror or error}", hint="name a file in a folder you can write"
        ) from error


def caption(layers: Sequence[dict[str, Any]], width: int) -> str:
    """What the layers compare, in their own words: each sentence once, in lines of `width` characters."""
    by_text: dict[str, list[int]] = {}
    for layer in layers:
        by_text.setdefault(layer["text"], []).append(layer["index"])
    lines = []
    for text, indices in by_text.items():
        which = "" if len(by_text) == 1 else f"layer {', '.join(map(str, indices))}: "
        lines += textwrap.wrap(f"{which}{text}", width)
    return "\n".join(lines)


def plain(axes: Axes) -> None:
    """No ticks, frame and grid, for an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
