"""What the pictures of the pages have in common: their colours, their settings, axes without a frame."""

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

INK = "#22303c"
QUIET = "#8a97a3"
PALE = "#d5dce2"
# Legible on white and on black: for pictures that tables.css leaves as they are.
EITHER = "#7d8994"
CHOSEN = "#c8501e"
OTHER = "#9fb4c7"
BLUE = "#1f5f99"
GREEN = "#3c8a5c"
DIVERGING = LinearSegmentedColormap.from_list("basis", [BLUE, "#f7f5f2", CHOSEN])

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "mathtext.fontset": "dejavusans",
    "savefig.dpi": 140,
}


def bare(axes: Axes) -> None:
    """Take away the frame and the ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
