"""Charts of the report: pure functions from numbers to SVG that follows the page.

No chart has a viewBox: x is in per cent of the width, y in pixels, so bars stretch with the page
while text keeps its size on a phone. Colours are CSS classes, so light, dark and print need one
drawing. Every mark carries a <title>, which a pointer shows and a screen reader says.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

ROOM = 280  # pixels of a plot on a narrow phone, for labels beside each other
GLYPH = 7  # pixels a character of a label takes, about
SHORT = 6  # characters of a label that the page has room for at the left of a plot
TICK_ROOM = 34  # pixels under the plot for tick labels and the axis name


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """Round numbers within [low, high], at most `count` steps apart; `whole` ones where it has any.

    Examples:
        >>> ticks(0.0, 1.0, 5)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    whole = whole and math.ceil(low) <= math.floor(high)
    raw = max((high - low) / count, float(whole))
    power = 10.0 ** math.floor(math.log10(raw))
    sizes = [m * power for m in (1, 2, 2.5, 5, 10) if not whole or (m * power).is_integer()]
    step = next(size for size in sizes if size >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def number(value: float, digits: int = 3) -> str:
    """A short text for a number: thousands grouped, `digits` significant, true minus sign.

    Examples:
        >>> number(16800), number(0.04321), number(-2.0)
        ('16,800', '0.0432', '−2')
    """
    if value != value:
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        text = f"{_bare(mantissa)}e{int(exponent)}".replace("e-", "e−")
    else:
        places = max(0, digits - 1 - math.floor(math.log10(size)))
        text = _bare(f"{size:,.{places}f}")
    return ("−" if value < 0 else "") + text


def _bare(text: str) -> str:
    """The digits without zeros that end a fraction."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] as per cent; never rounds a share that is not 0 or 1 to 0 or 100."""
    text = f"{100 * share:.{digits}f}"
    edge = 10.0**-digits
    if share > 0 and float(text) == 0:
        return f"<\u00a0{edge:g}\u00a0%"
    if share < 1 and float(text) == 100:
        return f">\u00a0{100 - edge:g}\u00a0%"
    return _bare(text) + "\u00a0%"


def _chart(height: int, label: str, marks: Sequence[Markup], left: Mapping) -> Markup:
    """The frame of one chart; `label` says what it shows, `left` has the labels of y."""
    kind = "chart wide" if max(map(len, left.values()), default=0) > SHORT else "chart"
    return Markup(
        '<svg class="{0}" role="img" aria-label="{1}" width="100%" height="{2}">{3}</svg>'
    ).format(kind, label, height + TICK_ROOM, Markup("").join(marks))


def _y_axis(height: int, low: float, high: float, labels: Mapping[float, str]) -> list[Markup]:
    """Grid lines at the `labels`, each at the left, outside the plot."""
    marks = []
    for tick, label in labels.items():
        y = height * (1 - (tick - low) / (high - low))
        marks.append(
            Markup(
                '<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>'
                '<text class="tick end" x="-6" y="{1:.1f}">{2}</text>'
            ).format(y, y + 4, label)
        )
    return marks


def distinct(values: Sequence[float]) -> list[str]:
    """Texts for the ticks of an axis: as short as tells them apart.

    Examples:
        >>> distinct([1.2301, 1.2302])
        ['1.2301', '1.2302']
    """
    for digits in range(3, 12):
        texts = [number(value, digits) for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts


def _fit(texts: Sequence[str]) -> int:
    """How many labels as wide as these stand beside each other on a phone, two at least."""
    return max(2, ROOM // (GLYPH * max(map(len, texts)) + 2 * GLYPH))


def _x_axis(
    height: int, low: float, high: float, name: str, count: int = 8, whole: bool = False
) -> list[Markup]:
    """The base line, round ticks under it, and the axis name."""
    marks = [Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(height)]
    while count > 2 and len(at := ticks(low, high, count, whole)) > _fit(distinct(at)):
        count -= 1
    at = ticks(low, high, count, whole)
    for tick, text in zip(at, distinct(at), strict=True):
        share = 50.0 if high == low else 100 * (tick - low) / (high - low)
        anchor = "start" if share < 3 else "end" if share > 97 else "mid"
        marks.append(
            Markup('<text class="tick {0}" x="{1:.2f}%" y="{2}">{3}</text>').format(
                anchor, share, height + 15, text
            )
        )
    marks.append(
        Markup('<text class="name mid" x="50%" y="{0}">{1}</text>').format(height + 31, name)
    )
    return marks


def _rect(kind: str, x: float, width: float, y: float, height: float, title: str) -> Markup:
    """A bar: x and width in per cent, y and height in pixels."""
    return Markup(
        '<rect class="{0}" x="{1:.3f}%" width="{2:.3f}%" y="{3:.2f}" height="{4:.2f}">'
        "<title>{5}</title></rect>"
    ).format(kind, x, width, y, height, title)


def score_histogram(
    edges: np.ndarray, kept: np.ndarray, dropped: np.ndarray, threshold: float
) -> Markup:
    """Rows by score, dropped under kept in each bin, with the line of the lowest kept score.

    Args:
        edges: float [B + 1], bin edges, ascending.
        kept: int [B], rows kept in each bin.
        dropped: int [B], rows dropped in each bin.
        threshold: lowest score that is kept, in the unit of `edges`.
    """
    height = 220  # pixels of the plot
    top = max(1, int((kept + dropped).max()))
    low, high = float(edges[0]), float(edges[-1])
    width = 100 / len(kept)
    left = {tick: number(tick) for tick in ticks(0, top, whole=True)}
    marks = _y_axis(height, 0, top, left)
    for b, (k, d) in enumerate(zip(kept.tolist(), dropped.tolist(), strict=True)):
        if not k + d:
            continue
        title = f"score {number(edges[b])} to {number(edges[b + 1])}: {k:,} kept, {d:,} dropped"
        h_kept, h_dropped = height * k / top, height * d / top
        if d:
            marks.append(_rect("dropped", b * width, width, height - h_dropped, h_dropped, title))
        if k:
            y = height - h_dropped - h_kept
            marks.append(_rect("kept", b * width, width, y, h_kept, title))
    marks += _x_axis(height, low, high, "score (higher: agrees more with the safe set)")
    x = min(100.0, max(0.0, 100 * (threshold - low) / (high - low)))
    anchor, offset = ("end", -6) if x > 50 else ("start", 6)
    marks.append(
        Markup(
            '<line class="cut" x1="{0:.2f}%" x2="{0:.2f}%" y1="-14" y2="{1}"/>'
            '<text class="cutname {2}" x="{0:.2f}%" dx="{3}" y="-5">kept from {4}</text>'
        ).format(x, height, anchor, offset, number(threshold, 4))
    )
    total_kept, total_dropped = int(kept.sum()), int(dropped.sum())
    label = (
        f"Histogram of scores: {total_kept:,} rows kept at {number(threshold, 4)} and above, "
        f"{total_dropped:,} dropped, over scores {number(low)} to {number(high)}"
    )
    return _chart(height, label, marks, left)


def share_columns(names: Sequence[str], shares: np.ndarray, overall: float, axis: str) -> Markup:
    """One column a group, dropped above kept, and a line at the share kept overall.

    Args:
        names: one text a group, shown under its column.
        shares: float [G], share kept in [0, 1].
        overall: share kept of all rows.
        axis: what the groups are.
    """
    width, height = 100 / len(names), 160  # per cent of the plot a column, pixels of it
    left = {tick: percent(tick, 0) for tick in ticks(0, 1)}
    marks = _y_axis(height, 0, 1, left)
    for g, (name, share) in enumerate(zip(names, shares.tolist(), strict=True)):
        h, x = height * share, g * width + width * 0.12
        title = f"{axis} {name}: {percent(share)} kept"
        if share < 1:
            marks.append(_rect("dropped", x, width * 0.76, 0, height - h, title))
        if share:
            marks.append(_rect("kept", x, width * 0.76, height - h, h, title))
    shown = np.linspace(0, len(names) - 1, min(len(names), _fit(names)))
    for g in np.unique(shown.round().astype(int)).tolist():
        place = (g * width, "start") if g == 0 else ((g + 0.5) * width, "mid")
        place = ((g + 1) * width, "end") if g == len(names) - 1 > 0 else place
        marks.append(
            Markup('<text class="tick {0}" x="{1:.2f}%" y="{2}">{3}</text>').format(
                place[1], place[0], height + 15, names[g]
            )
        )
    y = height * (1 - overall)
    marks.append(
        Markup(
            '<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>'
            '<text class="name mid" x="50%" y="{1}">{2}</text>'
            '<line class="cut" x1="0" x2="100%" y1="{3:.1f}" y2="{3:.1f}"/>'
        ).format(height, height + 31, axis, y)
    )
    said = "; ".join(f"{n}: {percent(s)}" for n, s in zip(names, shares.tolist(), strict=True))
    return _chart(height, f"Share kept by {axis}. Overall {percent(overall)}. {said}", marks, left)


def _path(x: np.ndarray, y: np.ndarray, low: float, high: float) -> str:
    """Points "x,y x,y" in a 100 by 100 box, y upwards from `low` to `high`."""
    span = (high - low) or 1.0
    px = 100 * (x - x[0]) / ((x[-1] - x[0]) or 1)
    py = 100 * (1 - (y - low) / span)
    return " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(px, py, strict=True))


def curve(
    x: np.ndarray,
    y: np.ndarray,
    name: str,
    axis: str,
    *,
    band: tuple[np.ndarray, np.ndarray] | None = None,
    bounds: tuple[float, float] | None = None,
    whole: bool = False,
    height: int = 110,
) -> Markup:
    """A line of y over x, with a band behind it when given.

    Args:
        x: float [P], ascending.
        y: float [P], finite.
        name: what y is.
        axis: what x is.
        band: its lower and its upper edge, each float [P].
        bounds: ends of the y axis; not given, those of the values.
        whole: x counts something.
        height: pixels of the plot.
    """
    low, high = band or (y, y)
    floor, ceil = bounds or (float(np.min(low)), float(np.max(high)))
    shown = ticks(floor, ceil, 4)
    if ceil == floor:
        floor, ceil = floor - 0.5 * (abs(floor) or 1), ceil + 0.5 * (abs(ceil) or 1)
    left = dict(zip(shown, distinct(shown), strict=True))
    marks = _y_axis(height, floor, ceil, left)
    marks += _x_axis(height, float(x[0]), float(x[-1]), axis, 5, whole)
    if len(x) == 1:
        py = height * (1 - (float(y[0]) - floor) / (ceil - floor))
        marks.append(Markup('<circle class="dot" cx="50%" cy="{0:.1f}" r="4"/>').format(py))
    else:
        there = _path(x, high, floor, ceil)
        back = " ".join(reversed(_path(x, low, floor, ceil).split()))
        shade = Markup('<polygon class="band" points="{0} {1}"/>').format(there, back)
        marks.append(
            Markup(
                '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 100 100" '
                'preserveAspectRatio="none">{1}<polyline class="line" points="{2}"/></svg>'
            ).format(height, shade, _path(x, y, floor, ceil))
        )
    label = (
        f"{name} over {axis}: from {number(float(y[0]))} to {number(float(y[-1]))}, "
        f"between {number(float(y.min()))} and {number(float(y.max()))}"
    )
    return _chart(height, label, marks, left)


def share_bar(share: float, overall: float) -> Markup:
    """A bar for a table cell: the share kept, with a mark at the share kept overall."""
    return Markup(
        '<svg class="bar" aria-hidden="true" width="100%" height="14">'
        '<rect class="dropped" x="0" y="1" width="100%" height="12"/>'
        '<rect class="kept" x="0" y="1" width="{0:.2f}%" height="12"/>'
        '<line class="cut" x1="{1:.2f}%" x2="{1:.2f}%" y1="0" y2="14"/></svg>'
    ).format(100 * share, 100 * overall)


def whisker(value: float, low: float, high: float, top: float = 1.0) -> Markup:
    """A dot with its interval on the scale 0 to `top`, for a table cell."""

    def place(v: float) -> float:
        return 4 + 92 * min(1.0, max(0.0, v / top))  # the dot at an end stays whole

    return Markup(
        '<svg class="whisker" aria-hidden="true" width="100%" height="14">'
        '<line class="axis" x1="4%" x2="96%" y1="7" y2="7"/>'
        '<line class="span" x1="{0:.2f}%" x2="{1:.2f}%" y1="7" y2="7"/>'
        '<circle class="dot" cx="{2:.2f}%" cy="7" r="4"/></svg>'
    ).format(place(low), place(high), place(value))


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Examples:
        >>> duration(4.2), duration(75), duration(7260)
        ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def visible(text: str) -> str:
    """Text with control and direction-override characters replaced, so nothing hides in a row."""
    return "".join("\ufffd" if _hides(character) else character for character in text)


def seams(text: str) -> Markup:
    """A name as `visible`, that wraps behind its marks before it breaks within a word."""
    return Markup("<wbr>").join(re.split(r"(?<=\w[_./-])(?=[^\W\d])", visible(text)))


def _hides(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs") or character in _OVERRIDES


_OVERRIDES = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
