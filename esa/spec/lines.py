"""Find the line on which each key of a TOML text stands, for errors that name it."""

import re

Path = tuple[str | int, ...]
_TABLE = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(
    r"^\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=(.*)$"
)
_TOKEN = re.compile(r"\"{3}|'{3}|\"(?:\\.|[^\"\\])*\"|'[^']*'|#.*|[\[{]|[\]}]")


def _parts(dotted: str) -> Path:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def key_lines(text: str) -> dict[Path, int]:
    """Map every key path, such as ``("score", "metrics")`` or ``("perturb", 1, "sigma")``, to its 1-based line.

    Arrays and strings that span lines belong to the line their key stands on.
    """
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    depth, quote = 0, ""
    for number, line in enumerate(text.split("\n"), start=1):
        value = line
        if quote:  # inside a multi-line string
            _, closed, value = line.partition(quote)
            if not closed:
                continue
        elif depth == 0 and (match := _TABLE.match(line)):
            table = _parts(match[2])
            if match[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            lines.setdefault(table, number)
            continue
        elif depth == 0 and (match := _KEY.match(line)):
            lines[(*table, *_parts(match[1]))] = number
            value = match[2]
        depth, quote = _opened(value, depth)
    return lines


def _opened(value: str, depth: int) -> tuple[int, str]:
    """Return how many brackets are open behind ``value``, and the quotes of a string that goes on in the next line."""
    at = 0
    while match := _TOKEN.search(value, at):
        token, at = match[0], match.end()
        if token in ('"""', "'''"):
            end = value.find(token, at)
            if end < 0:
                return depth, token
            at = end + 3
        elif token in "[{":
            depth += 1
        elif token in "]}":
            depth = max(0, depth - 1)
    return depth, ""
