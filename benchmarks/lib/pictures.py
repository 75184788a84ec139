"""Pictures of the benchmarks, in the style of `blockswap plot`; matplotlib comes with the extra `plot`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockswap_models.searching.plot import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREY", "ORANGE", "picture"]

# Of the palette of Okabe and Ito, which colour-blind readers can tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8c8c8c"


def picture(out: str | Path, size: tuple[float, float], draw: Callable[[Figure], Any]) -> None:
    """Draws a figure of a size in inches to a PNG or SVG file; raises ValueError where it cannot."""
    out = Path(out)
    if out.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"unknown suffix '{out.suffix}' of {out}; use .png or .svg")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError('a picture needs matplotlib; pip install "blockswap_models[plot]"') from None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw(figure)
        try:
            figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise ValueError(f"cannot write the picture {out}: {error.strerror}") from None
    print(f"picture: {out}")
