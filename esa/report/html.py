"""The page that people open: one file that holds its text, its charts, their data and all scripts, and asks for nothing."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import vl_convert
from markdown_it import MarkdownIt
from markdown_it.token import Token

from esa.report.figures import Figure
from esa.report.head import Head
from esa.report.page import Section
from esa.report.theme import GROUPS, PALETTE, VEGA_LITE, specification

_VERDICTS = ("good", "between", "bad", "unattainable")
_HASH = re.compile(r"[0-9a-f]{40,64}")
_SHORT = 24  # characters: what is shorter is kept on one line
_LONG = 34  # characters: what is longer in a table goes on in the next line
_BAD = ("collapsed", "uniform", "nonfinite", "overflow")
_RANGE = re.compile(r'(<td class="num[^>]*>[^<]*) (\[[^\]<]*\])</td>')  # of "38.37 [38.36, 38.38]"
_BREAKS = re.compile(r"(?<=[./:])(?=\w)")  # where a long address or path may go on in the next line


def html_page(
    head: Head,
    sections: Sequence[Section],
    pictures: Mapping[str, str],
    *,
    generator: str,
    styles: Sequence[str] = ("page.css",),
) -> str:
    """Return the page as HTML that needs no network: the same arguments give the same bytes.

    ``pictures`` maps each figure's name to its SVG, which stands until the live chart has been drawn, and where scripts do
    not run. ``head`` is plain text, ``sections`` Markdown whose text from files is escaped; links, images and raw HTML in it
    stay text. ``styles`` names style sheets under ``assets/``. A policy in the page allows its own two scripts and its own
    style by their hashes, and nothing else.
    Cost: a second for the bundle of Vega; the page is about 1 MB.
    """
    style = _style(tuple(styles))
    scripts = [_bundle(), _asset("page.js")]
    body = [_header(head), _contents(sections), "<main>"]
    body += [_section(section, pictures) for section in sections]
    body += ["</main>", f"<footer><p>{html.escape(generator)}</p></footer>"]
    charts = [part for section in sections for part in section.parts if isinstance(part, Figure)]
    body += [_chart_data(figure) for figure in charts]
    body += [f"<script>{script}</script>" for script in scripts]
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {' '.join(map(_digest, scripts))};"
        " base-uri 'none'; form-action 'none'"
    )
    return "\n".join([
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(head.name)}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        *body,
        "</body>",
        "</html>",
        "",
    ])  # fmt: skip


def _header(head: Head) -> str:
    title, kicker = (head.question, head.name) if head.question else (head.name, "")
    parts = ['<header id="top">']
    if kicker:
        parts.append(f'<p class="kicker">{_breakable(kicker)}</p>')
    parts.append(f"<h1>{_breakable(title)}</h1>")
    if head.facts:
        facts = "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{_breakable(value)}</dd></div>" for name, value in head.facts.items()
        )
        parts.append(f'<dl class="facts">{facts}</dl>')
    if head.note:
        parts.append(f'<p class="note">{html.escape(head.note)}</p>')
    return "\n".join([*parts, "</header>"])


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#{_anchor(one.title)}">{html.escape(one.title)}</a></li>' for one in sections)
    return f'<nav aria-label="Contents"><ol>{links}</ol></nav>'


def _section(section: Section, pictures: Mapping[str, str]) -> str:
    anchor = _anchor(section.title)
    parts = [
        f'<section id="{anchor}" aria-labelledby="{anchor}-h">',
        f'<h2 id="{anchor}-h">{html.escape(section.title)}</h2>',
    ]
    open_row = False
    for part in section.parts:
        if isinstance(part, Figure) != open_row:
            open_row = not open_row
            parts.append('<div class="figures">' if open_row else "</div>")
        parts.append(_figure(part, pictures[part.name]) if isinstance(part, Figure) else _prose(part, section.title))
    return "\n".join([*parts, *(["</div>"] if open_row else []), "</section>"])


def _figure(figure: Figure, picture: str) -> str:
    """Return a figure: its picture, which the live chart replaces, its caption, and its files one click away."""
    name, title = html.escape(figure.name), html.escape(figure.title)
    table = figure.data.write_csv(line_terminator="\r\n")
    caption = _markdown().renderInline(figure.caption)
    width = float(re.search(r'<svg[^>]*?\bwidth="([\d.]+)"', picture)[1])  # type: ignore[index]
    return "\n".join([
        f'<figure id="figure-{name}">',
        f'<div class="chart" data-chart="{name}" data-title="{title}" data-width="{width:g}">',
        f'<img src="{_data_address("image/svg+xml", picture)}" alt="{title}" width="{width:g}"></div>',
        f"<figcaption>{caption}",
        f'<span class="files"><a download="{name}.csv" href="{_data_address("text/csv", table)}">Data (CSV)</a></span>',
        "</figcaption>",
        "</figure>",
    ])  # fmt: skip


def _chart_data(figure: Figure) -> str:
    content = json.dumps(specification(figure.chart), allow_nan=False, separators=(",", ":"))
    return f'<script type="application/json" id="chart-{html.escape(figure.name)}">{script_safe(content)}</script>'


def script_safe(content: str) -> str:
    r"""Return JSON that can stand in a script element: ``<``, ``>``, ``&`` and the two line separators as ``\uXXXX``."""
    return re.sub(r"[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", content)


def _prose(text: str, title: str) -> str:
    """Return Markdown as HTML: tables in frames that scroll, numbers to the right, outcomes and groups marked."""
    markdown = _markdown()
    tokens = markdown.parse(text)
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            token.meta["title"] = title
        if token.type in ("th_open", "td_open"):
            align = str(token.attrs.pop("style", ""))
            names = ["num"] if align == "text-align:right" else []
            names += _cell_classes(tokens[place + 1].content) if token.type == "td_open" else []
            if names:
                token.attrs["class"] = " ".join(names)
    shown = str(markdown.renderer.render(tokens, markdown.options, {}))
    return _RANGE.sub(r'\1 <span class="range">\2</span></td>', shown)


def _cell_classes(content: str) -> list[str]:
    if content in GROUPS:
        return ["group", content]
    if content in _VERDICTS:
        return ["verdict", content]
    if any(word in content for word in _BAD):
        return ["bad"]
    return ["long"] if len(content) > _LONG and "`" not in content else []


@cache
def _markdown() -> MarkdownIt:
    """Return a Markdown reader that knows text, code, lists and tables: what files say can be no link, image or markup."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.disable(["link", "image", "autolink", "html_inline", "html_block", "reference"])
    markdown.add_render_rule("table_open", _table_open)
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    markdown.add_render_rule("code_inline", _code)
    markdown.add_render_rule("fence", _fence)
    return markdown


def _table_open(_: Any, tokens: Sequence[Token], place: int, *__: Any) -> str:
    title = html.escape(str(tokens[place].meta.get("title", "")))
    return f'<div class="scroll" role="region" tabindex="0" aria-label="Table: {title}"><table>\n'


def _code(_: Any, tokens: Sequence[Token], place: int, *__: Any) -> str:
    text = tokens[place].content
    if _HASH.fullmatch(text):
        return f'<code class="hash" title="{text}">{text[:12]}<span>{text[12:]}</span></code>'
    return f"<code>{_breakable(text)}</code>"


def _fence(_: Any, tokens: Sequence[Token], place: int, *__: Any) -> str:
    lines = "".join(f"<span>{_breakable(line)}\n</span>" for line in tokens[place].content.splitlines())
    return f'<div class="shell"><pre><code>{lines}</code></pre></div>\n'


def _breakable(text: str) -> str:
    """Escape text and allow a line break behind the dots, slashes and colons of long addresses and paths."""
    if len(text) < _SHORT:
        return html.escape(text)
    return "<wbr>".join(html.escape(piece) for piece in _BREAKS.split(text))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _data_address(kind: str, content: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.encode()).decode()}"


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script. Raises ValueError if it could end its own element."""
    content: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    if re.search(r"</script|<!--", content, re.IGNORECASE):
        raise ValueError("the bundle of vl-convert cannot stand in a script element")
    return content.replace("\r\n", "\n")  # a browser hashes a script after it made its line ends one kind


def _asset(name: str) -> str:
    return files("esa.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _style(names: tuple[str, ...]) -> str:
    colors = "".join(f"--{name}:{color};" for name, color in PALETTE.items())
    sheets = "".join(map(_asset, names))
    return f":root{{{colors}}}\n{sheets}"
