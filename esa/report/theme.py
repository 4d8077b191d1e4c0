"""How every figure looks: one palette, one type size, one width; drawn without touching Altair's global state."""

import json
import re
from typing import Any

import altair as alt
import vl_convert

from esa.report.interactive import bind_legend

# Any two stay at least 20 apart in CIEDE2000 under protanopia, deuteranopia and tritanopia (tests/report/test_theme.py).
PALETTE = {
    "red": "#d1341f",
    "blue": "#1f5fa8",
    "gold": "#e8ae00",
    "grey": "#7d7d7d",
    "sky": "#9ccbea",
    "ink": "#1a1a1a",
}
GROUPS = {
    "top_k": ("red", "circle"),
    "random_k": ("grey", "diamond"),
    "bottom_k": ("blue", "square"),
    "matched_k": ("gold", "triangle-up"),
}
RUNS = (
    ("blue", "circle"), ("red", "square"), ("gold", "triangle-up"), ("ink", "diamond"), ("sky", "triangle-down"),
    ("grey", "cross"),
)  # fmt: skip
SHADES = ["#e6f0f9", "#9ccbea", "#1f5fa8", "#0a2746"]  # light to dark: also apart in grey
RULE = "#d9d9d9"
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
TYPE = 12  # pixels; a figure of WIDTH pixels printed 85 mm (241 points) wide shows them as 7.6 points
WIDTH = 380  # pixels, of the whole figure
PRINTED_POINTS = 85 / 25.4 * 72
PPI = 200
VEGA_LITE = ".".join(
    alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2]
)  # the version that Altair writes, as vl-convert says it
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_TYPE = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": TYPE, "titleFontSize": TYPE}
_INK = {"labelColor": PALETTE["ink"], "titleColor": PALETTE["ink"]}
CONFIG: dict[str, Any] = {
    "background": "#ffffff",
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        **_TYPE,
        **_INK,
        "titleFontWeight": "normal",
        "titlePadding": 6,
        "labelPadding": 3,
        "domainColor": PALETTE["ink"],
        "tickColor": PALETTE["ink"],
        "tickSize": 4,
        "gridColor": RULE,
        "gridWidth": 0.6,
        "labelLimit": 160,
    },
    "legend": {**_TYPE, **_INK, "titleFontWeight": "normal", "labelLimit": 200, "symbolSize": 60, "offset": 8},
    "title": {
        "font": FONT,
        "subtitleFont": FONT,
        "fontSize": TYPE + 1,
        "subtitleFontSize": TYPE,
        "fontWeight": "bold",
        "color": PALETTE["ink"],
        "subtitleColor": PALETTE["ink"],
        "anchor": "start",
        "frame": "group",
        "offset": 8,
        "subtitlePadding": 3,
    },
    "text": {"font": FONT, "fontSize": TYPE, "color": PALETTE["ink"]},
    "concat": {"spacing": 14},
}


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return the chart as Vega-Lite under this theme, whatever theme Altair has enabled elsewhere."""
    with alt.data_transformers.enable("default", max_rows=None):  # Altair refuses more than 5,000
        content: dict[str, Any] = _one_line(chart.to_dict())
    content["config"] = CONFIG
    bind_legend(content)
    return content


def one_line(text: str) -> str:
    """Return text without line ends and other control characters: Vega-Lite cannot quote U+2028 in the expressions it writes."""
    return _CONTROL.sub(" ", text)


def _one_line(content: Any) -> Any:
    if isinstance(content, str):
        return one_line(content)
    if isinstance(content, dict):
        return {key: _one_line(value) for key, value in content.items()}
    return [_one_line(value) for value in content] if isinstance(content, list) else content


def render(chart: alt.TopLevelMixin) -> tuple[bytes, str]:
    """Return the chart as PNG (200 pixels per inch) and as SVG. Needs no network and no browser."""
    text = json.dumps(specification(chart), allow_nan=False)
    png: bytes = vl_convert.vegalite_to_png(text, vl_version=VEGA_LITE, ppi=PPI)
    svg: str = vl_convert.vegalite_to_svg(text, vl_version=VEGA_LITE)
    return png, _renumbered(svg)


def _renumbered(svg: str) -> str:
    """Number the ids of gradients and clips by appearance: Vega counts them per process, and bytes would depend on that."""
    ids = list(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)))
    for number, name in enumerate(ids):
        svg = re.sub(rf'(?<=id="){re.escape(name)}(?=")|(?<=url\(#){re.escape(name)}(?=\))', f"part{number}", svg)
    return svg
