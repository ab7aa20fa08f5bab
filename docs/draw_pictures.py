"""Draws the logo and the picture of the method: `python docs/draw_pictures.py [--out docs]`.

Writes seal_logo.svg, seal_logo.png, seal_framework.svg and seal_framework.png. Backgrounds are
transparent and every colour reads on white and on black. The same input gives the same bytes.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

TEAL, DEEP, ICE, INK = "#1c8f96", "#0e5a66", "#e9f4f5", "#16323a"
FUR, MUZZLE, BLUSH = "#8fa6b2", "#d5e0e6", "#e8a598"
SAFE, PLAIN, UNSAFE, FAINT, ARROW = "#3a9d6e", "#5b8fc7", "#d9694f", "#b9c6cc", "#7d929b"


def canvas(width: float, height: float, inches: float) -> tuple[Figure, Axes]:
    """A transparent figure whose axes run 0..width by 0..height, `inches` wide."""
    fig = plt.figure(figsize=(inches, inches * height / width))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return fig, ax


def save(fig: Figure, out: Path, name: str, dpi: int) -> None:
    """Writes OUT/NAME.svg and OUT/NAME.png without a date, so that reruns are equal."""
    fig.savefig(out / f"{name}.svg", transparent=True, metadata={"Date": None})
    fig.savefig(out / f"{name}.png", transparent=True, dpi=dpi, metadata={"Software": None})
    plt.close(fig)


def badge(ax: Axes, x: float, y: float, radius: float) -> None:
    """The rim of a wax seal: a scalloped disc with a pale field."""
    angle = np.linspace(0, 2 * np.pi, 721)
    rim = radius * (1 + 0.035 * np.cos(18 * angle))
    ax.add_patch(Polygon(np.c_[x + rim * np.cos(angle), y + rim * np.sin(angle)], color=TEAL))
    ax.add_patch(Circle((x, y), radius * 0.86, color=ICE))
    ax.add_patch(Circle((x, y), radius * 0.86, fill=False, color=DEEP, lw=1.6))


def face(ax: Axes, x: float, y: float, size: float) -> None:
    """A seal looks at you out of the water; `size` is half the width of its head."""

    def at(dx: float, dy: float) -> tuple[float, float]:
        return x + dx * size, y + dy * size

    def oval(dx: float, dy: float, width: float, height: float, colour: str, tilt: float = 0):
        return Ellipse(at(dx, dy), width * size, height * size, angle=tilt, color=colour, lw=0)

    shapes = [oval(0, 0.06, 2.0, 1.86, FUR), oval(0, -0.62, 2.34, 1.3, FUR)]
    for side in (-1, 1):
        shapes += [
            oval(side * 0.42, 0.2, 0.34, 0.4, INK),
            Circle(at(side * 0.42 + 0.06, 0.28), 0.065 * size, color="white", lw=0),
            oval(side * 0.74, -0.14, 0.26, 0.16, BLUSH),
            oval(side * 0.23, -0.32, 0.62, 0.5, MUZZLE, tilt=side * -12),
        ]
    shapes += [
        oval(0, -0.5, 0.34, 0.26, MUZZLE),
        Polygon(
            [at(-0.17, -0.06), at(0.17, -0.06), at(0, -0.25)], color=INK, joinstyle="round", lw=5
        ),
    ]
    for shape in shapes:
        ax.add_patch(shape)
    for side in (-1, 1):
        curve = np.linspace(0, np.pi, 30)
        ax.plot(
            x + size * side * (0.115 - 0.115 * np.cos(curve)),
            y + size * (-0.38 - 0.1 * np.sin(curve)),
            color=INK,
            lw=2.2,
            solid_capstyle="round",
        )
        for row, rise in enumerate((0.07, -0.03, -0.13)):
            start, end = at(side * 0.5, -0.3 - 0.06 * row), at(side * 0.98, -0.24 + rise)
            ax.plot(*zip(start, end, strict=True), color=DEEP, lw=1.3, solid_capstyle="round")


def waves(ax: Axes, x: float, y: float, radius: float) -> None:
    """Two waves across the lower part of the badge, inside its field."""
    field = Circle((x, y), radius * 0.845, transform=ax.transData)
    t = np.linspace(-radius, radius, 200)
    for level, colour in ((-0.44, TEAL), (-0.6, DEEP)):
        crest = y + radius * (level + 0.035 * np.sin(t / radius * 11 + level * 20))
        area = ax.fill_between(x + t, y - radius, crest, color=colour, lw=0, zorder=3)
        area.set_clip_path(field)


def draw_logo(out: Path) -> None:
    """The mark and the word, side by side."""
    fig, ax = canvas(272, 108, 5.44)
    badge(ax, 56, 54, 48)
    face(ax, 56, 52, 26)
    waves(ax, 56, 54, 48)
    ax.text(118, 57, "SEAL", color=TEAL, fontsize=72, fontweight="bold", va="center_baseline")
    save(fig, out, "seal_logo", 200)


def panel(ax: Axes, x: float, width: float, number: int, title: str) -> None:
    """A pale card, 0 < y < 100, with a numbered heading."""
    style = "round,pad=0,rounding_size=3"
    ax.add_patch(
        FancyBboxPatch((x, 3), width, 96, boxstyle=style, fc="#f6fafb", ec=FAINT, lw=1.2, zorder=0)
    )
    ax.add_patch(Circle((x + 8, 90), 4.2, color=TEAL, lw=0))
    ax.text(
        x + 8, 89.8, str(number), color="white", ha="center", va="center", weight="bold", size=13
    )
    ax.text(x + 15, 90, title, color=INK, va="center", weight="bold", size=14)


def rows(ax: Axes, x: float, y: float, colours: str, title: str) -> None:
    """A sheet of data rows; one letter a row: s safe, b benign, u unsafe."""
    table = {"s": SAFE, "b": PLAIN, "u": UNSAFE}
    for k, letter in enumerate(colours):
        ax.add_patch(Rectangle((x, y - 3.6 * k), 22, 2.5, color=table[letter], lw=0))
    ax.text(x + 11, y + 5.4, title, color=INK, ha="center", va="center", size=11.5)


def box(ax: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    """A filled box with centred white text, 15 high, its lower left corner at (x, y)."""
    style = "round,pad=0,rounding_size=2"
    ax.add_patch(FancyBboxPatch((x, y), width, 15, boxstyle=style, fc=colour, ec="none"))
    ax.text(
        x + width / 2,
        y + 7.3,
        text,
        color="white",
        ha="center",
        va="center",
        size=11.5,
        linespacing=1.3,
    )


def arrow(ax: Axes, start: tuple, end: tuple, bend: float = 0.0, lw: float = 2.0) -> None:
    """An arrow between two points; `bend` is its curvature."""
    curve = f"arc3,rad={bend}"
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=13,
            color=ARROW,
            lw=lw,
            connectionstyle=curve,
        )
    )


def draw_training(ax: Axes, x: float) -> None:
    """Card 1: the bilevel problem."""
    panel(ax, x, 118, 1, "Train the selector")
    rows(ax, x + 8, 70, "sssss", "trusted safe data")
    rows(ax, x + 8, 36, "bubbubu", "your data, $N$ rows")
    box(ax, x + 48, 57, 30, "model $\\theta$", DEEP)
    box(ax, x + 48, 23, 30, "selector $\\omega$\none logit a row", TEAL)
    arrow(ax, (x + 31, 64.5), (x + 47, 64.5))
    arrow(ax, (x + 31, 28), (x + 47, 28.5))
    arrow(ax, (x + 57, 39), (x + 57, 56), bend=-0.25)
    arrow(ax, (x + 69, 56), (x + 69, 39), bend=-0.25)
    ax.text(
        x + 54, 47.5, "weights $\\sigma_i(\\omega)$", color=INK, ha="right", va="center", size=10.5
    )
    ax.text(x + 72.5, 47.5, "row losses", color=INK, ha="left", va="center", size=10.5)
    ax.text(x + 98, 67, "upper level", color=SAFE, ha="center", size=11, weight="bold")
    ax.text(
        x + 98,
        60,
        "$\\min_\\omega\\; L_{\\rm safe}(\\theta^*(\\omega))$",
        color=INK,
        ha="center",
        size=12,
    )
    ax.text(x + 98, 33, "lower level", color=PLAIN, ha="center", size=11, weight="bold")
    ax.text(
        x + 98,
        25.5,
        "$\\min_\\theta\\; \\sum_i \\sigma_i(\\omega)\\,\\ell(\\theta; z_i)$",
        color=INK,
        ha="center",
        size=12,
    )


def draw_selection(ax: Axes, x: float) -> None:
    """Card 2: rows by score, cut at the top p."""
    panel(ax, x, 70, 2, "Rank, keep the top $p$")
    scores = [44, 41, 38, 36, 31, 28, 18, 14, 10, 6]
    colours = [PLAIN] * 7 + [UNSAFE, UNSAFE, UNSAFE]
    for k, (score, colour) in enumerate(zip(scores, colours, strict=True)):
        y = 72 - 5.6 * k - (4 if k >= 7 else 0)
        ax.add_patch(
            Rectangle((x + 10, y), score, 3.8, color=colour, alpha=1 if k < 7 else 0.35, lw=0)
        )
    ax.plot([x + 7, x + 63], [35, 35], color=INK, lw=1.5, ls=(0, (4, 3)))
    ax.text(x + 63, 37.2, "kept", color=INK, ha="right", size=11.5)
    ax.text(x + 63, 29.4, "left out", color=INK, ha="right", size=11.5)
    ax.text(x + 10, 9, "score of a row  $\\rightarrow$", color=INK, va="center", size=11.5)


def draw_tuning(ax: Axes, x: float) -> None:
    """Card 3: plain SFT on what is left."""
    panel(ax, x, 82, 3, "Fine-tune on those")
    rows(ax, x + 8, 70, "bbbbbbb", "kept rows")
    box(ax, x + 8, 14, 26, "aligned\nmodel", DEEP)
    box(ax, x + 47, 46, 29, "fine-tuned\nmodel", TEAL)
    arrow(ax, (x + 31, 57), (x + 46, 54))
    arrow(ax, (x + 34.5, 24), (x + 56, 45), bend=0.25)
    ax.text(x + 61.5, 67, "plain SFT", color=INK, ha="center", size=11.5)
    ax.text(
        x + 63, 21, "learns the task,\nstays safe", color=INK, ha="center", va="center", size=11
    )


def draw_framework(out: Path) -> None:
    """The three stages, left to right."""
    fig, ax = canvas(296, 102, 14)
    draw_training(ax, 1)
    draw_selection(ax, 131)
    draw_tuning(ax, 213)
    arrow(ax, (119.5, 51), (130.5, 51), lw=4)
    arrow(ax, (201.5, 51), (212.5, 51), lw=4)
    save(fig, out, "seal_framework", 130)


def main() -> None:
    """Draws both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(
        {"svg.hashsalt": "seal", "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}
    )
    draw_logo(out)
    draw_framework(out)


if __name__ == "__main__":
    main()
