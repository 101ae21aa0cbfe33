"""The routers of a file as a picture for a page: PNG or SVG, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from first_llama.convert.atomic import write_bytes
from first_llama.convert.picture import resting_scores, weight_norms
from first_llama.convert.routers import Routers
from first_llama.errors import FirstError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

_RUNS, _SKIPPABLE, _THRESHOLD = "0.75", "tab:blue", "tab:red"
#: Whatever a user's matplotlibrc says: text is never markup, and the same routers give the same SVG.
_SETTINGS: Any = {"text.usetex": False, "text.parse_math": False, "svg.hashsalt": "first-llama"}


def save_plot(routers: Routers, path: Path, title: str) -> None:
    """Draw layer map, resting scores against the threshold, weight norms, and the budgets if there are any.

    Args:
        routers: valid routers.
        path: a .png or .svg file; it appears whole or not at all, and replaces what has the name.
        title: text above the plot; taken as it is, never as markup.

    Raises:
        FirstError: if the ending is another one, matplotlib is missing, or the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FirstError(f"{path} is neither .png nor .svg; choose one of the two endings")
    if path.is_dir():
        raise FirstError(f"{path} is a folder; give a file name for the plot")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise FirstError(f'a plot needs {e.name or "matplotlib"}: pip install "first-llama[train]"') from e
    except ValueError as e:  # a setting of the user's, such as MPLBACKEND
        raise FirstError(f"matplotlib does not start: {e}") from e
    out = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # A name may have letters that the font lacks; they become boxes.
        warnings.simplefilter("ignore")
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        _fill(figure, routers, title)
        figure.savefig(out, format=suffix[1:], dpi=150, metadata={"Date": None} if suffix == ".svg" else None)
    write_bytes(path, out.getvalue())


def _fill(figure: Figure, routers: Routers, title: str) -> None:
    n_axes = 3 if routers.budget_fraction.size else 2
    figure.set_size_inches(8, 2.6 * n_axes)
    axes = figure.subplots(n_axes, 1)
    _draw_scores(axes[0], routers)
    _draw_norms(axes[1], routers)
    if routers.budget_fraction.size:
        _draw_budgets(axes[2], routers)
    shown = "".join(c if c.isprintable() else "?" for c in title)[:100]
    figure.suptitle(shown, fontsize=11)


def _draw_scores(axes: Axes, routers: Routers) -> None:
    axes.bar(routers.layers, resting_scores(routers), color=_SKIPPABLE, label="may be skipped")
    axes.axhline(routers.threshold, color=_THRESHOLD, linewidth=1, label=f"threshold {routers.threshold:.3g}")
    axes.set_ylim(0, 1)
    _map_layers(axes, routers)
    axes.set_ylabel("resting score\nsigmoid(bias)")
    _legend(axes)


def _draw_norms(axes: Axes, routers: Routers) -> None:
    axes.bar(routers.layers, weight_norms(routers), color=_SKIPPABLE)
    _map_layers(axes, routers)
    axes.set_ylabel("weight norm")
    axes.set_xlabel("layer")


def _map_layers(axes: Axes, routers: Routers) -> None:
    """Shade the layers that always run."""
    skippable = set(routers.layers.tolist())
    label: str | None = "always runs"
    for layer in range(routers.block_count):
        if layer not in skippable:
            axes.axvspan(layer - 0.5, layer + 0.5, color=_RUNS, alpha=0.5, linewidth=0, label=label)
            label = None
    axes.set_xlim(-0.5, routers.block_count - 0.5)


def _draw_budgets(axes: Axes, routers: Routers) -> None:
    percent = 100 * routers.budget_fraction
    axes.plot(percent, routers.budget_threshold, "o-", color=_SKIPPABLE, label="budgets")
    axes.axhline(routers.threshold, color=_THRESHOLD, linewidth=1, label=f"threshold {routers.threshold:.3g}")
    axes.set_xlim(0, 1.1 * float(percent.max()))
    axes.set_ylim(0, 1)
    axes.set_xlabel("layers skipped, %")
    axes.set_ylabel("threshold")
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
