"""Plotly charts of one look. Colours are CSS variables, which the page fills in for the light and the dark scheme."""

import html
import math
from collections.abc import Sequence
from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SERIES = 6  # colours of the style sheet, --series-0 (the model) to --series-5


def color(place: int) -> str:
    """Of the model (0) and the baselines."""
    return f"var(--series-{place % SERIES})"


def text(words: object) -> str:
    """Words from the data as Plotly shows them: it reads some HTML in all its texts."""
    return html.escape(str(words), quote=False)


def clean(values: Sequence[float | None]) -> list[float | None]:
    """JSON has no nan."""
    return [None if v is None or not math.isfinite(v) else v for v in values]


def draw(
    traces: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], height: int = 340, **more: Any
) -> dict[str, Any]:
    """Plotly's JSON of traces.

    Args:
        traces: as Plotly names them.
        x, y: the axes; "title" is words.
        height: in pixels; the width is the page's.
        more: of the layout.
    """
    from plotly.graph_objs import Figure
    from plotly.graph_objs.layout import Template

    axis = {
        "gridcolor": "var(--grid)", "zeroline": False, "linecolor": "var(--line)", "tickcolor": "var(--line)", "automargin": True,
        "ticks": "", "fixedrange": True, "tickfont": {"color": "var(--soft)"},
    }  # fmt: skip
    axes = {
        f"{name}axis": axis
        | given
        | {"title": {"text": given.get("title", ""), "standoff": 10, "font": {"size": 13, "color": "var(--soft)"}}}
        for name, given in (("x", x), ("y", y))
    }
    layout = {
        "template": Template(),
        "height": height,
        "margin": {"l": 8, "r": 14, "t": 34 if len(traces) > 1 and more.get("showlegend", True) else 10, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13, "color": "var(--ink)"},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "align": "left",
                       "font": {"family": FONT, "size": 13, "color": "var(--ink)"}},
        "hovermode": "closest",
        "dragmode": False,
        "showlegend": len(traces) > 1,
    }  # fmt: skip
    made: dict[str, Any] = Figure(data=traces, layout=layout | axes | more).to_plotly_json()
    made["layout"].pop("template", None)
    return made


def line(name: str, x: Sequence[Any], y: Sequence[float | None], place: int, **more: Any) -> dict[str, Any]:
    """A line with points."""
    style = {
        "type": "scatter", "mode": "lines+markers", "name": text(name), "x": list(x), "y": clean(y),
        "line": {"color": color(place), "width": 3 if place == 0 else 2},
        "marker": {"size": 7 if place == 0 else 5, "color": color(place)},
    }  # fmt: skip
    return style | more


def whiskers(
    name: str,
    means: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    at: Sequence[float],
    place: int,
    words: list[str],
) -> dict[str, Any]:
    """Points with intervals, one below the other; `words` are shown beneath the pointer."""
    more = [high - mean for high, mean in zip(highs, means, strict=True)]
    less = [mean - low for low, mean in zip(lows, means, strict=True)]
    return {
        "type": "scatter", "mode": "markers", "name": text(name), "x": clean(means), "y": list(at),
        "error_x": {"type": "data", "symmetric": False, "array": clean(more), "arrayminus": clean(less), "color": color(place),
                    "thickness": 2, "width": 0},
        "marker": {"size": 10 if place == 0 else 8, "color": color(place), "symbol": "circle" if place == 0 else "diamond"},
        "text": [text(w) for w in words], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
