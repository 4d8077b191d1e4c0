"""A chart as a PDF whose bytes depend on the chart alone: vl-convert orders fonts and resources by chance."""

import json
import re
import zlib

import altair as alt
import vl_convert

from esa.report.theme import VEGA_LITE, specification

_REFERENCE = re.compile(rb"\b(\d+) 0 R\b")
_ENTRIES = re.compile(rb"(?:[ \t]*/[a-z]+\d+ \d+ 0 R\n)+")  # of a dictionary of resources, one in each line
_FONT = re.compile(rb"^([ \t]*)/fo(\d+) (\d+) 0 R$", re.MULTILINE)
_CHOICE = re.compile(rb"/fo(\d+)(?= [\d.]+ Tf\b)")  # of a font, in a stream that draws


def to_pdf(chart: alt.TopLevelMixin) -> bytes:
    """Return the chart as PDF with its fonts embedded. Needs no network and no browser. Cost: 0.2 s.

    Raises ValueError for a PDF of another layout than that of the svg2pdf in vl-convert 1.7 to 1.9.
    """
    drawn: bytes = vl_convert.vegalite_to_pdf(json.dumps(specification(chart), allow_nan=False), vl_version=VEGA_LITE)
    return settled(drawn)


def settled(pdf: bytes) -> bytes:
    """Return the same page with everything in an order of its own: fonts by name, resources by name, objects by use.

    Raises ValueError for a file that is no PDF of svg2pdf's: one section of references, no object streams.
    """
    objects, trailer = _objects(pdf)
    objects = _sorted_resources(_renamed_fonts(objects))
    root, info = (
        int(found[1]) if (found := re.search(rb"/%s (\d+) 0 R" % name, trailer)) else 0 for name in (b"Root", b"Info")
    )
    order = _in_use(objects, [root, info])
    places = {old: new for new, old in enumerate(order, start=1)}

    def moved(text: bytes) -> bytes:
        return _REFERENCE.sub(lambda found: b"%d 0 R" % places[int(found[1])], text)

    out = bytearray(pdf[: pdf.index(b"\n", pdf.index(b"\n") + 1) + 1])  # version, and the mark of a binary file
    offsets = []
    for old in order:
        head, stream = objects[old]
        offsets.append(len(out))
        out += b"%d 0 obj\n" % places[old] + moved(head) + stream + b"endobj\n\n"
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f\r\n" % (len(order) + 1)
    out += b"".join(b"%010d 00000 n\r\n" % offset for offset in offsets)
    out += b"trailer\n<<\n  /Size %d\n%s>>\nstartxref\n%d\n%%%%EOF" % (
        len(order) + 1,
        b"  /Root %d 0 R\n" % places[root] + (b"  /Info %d 0 R\n" % places[info] if info else b""),
        start,
    )
    return bytes(out)


def _objects(pdf: bytes) -> tuple[dict[int, tuple[bytes, bytes]], bytes]:
    """Return each object's dictionary and stream by number, and the trailer."""
    start = re.search(rb"startxref\s+(\d+)\s+%%EOF\s*$", pdf)
    table = pdf[int(start[1]) :] if start else b""
    if not start or not table.startswith(b"xref\n0 "):
        raise ValueError("the PDF has no plain table of references")
    entries, _, trailer = table.partition(b"trailer")
    offsets = {n: int(line[:10]) for n, line in enumerate(entries.split(b"\n")[2:]) if line[17:18] == b"n"}
    ends = sorted([*offsets.values(), int(start[1])])
    found = {}
    for number, offset in offsets.items():
        body = pdf[offset : ends[ends.index(offset) + 1]]
        opening = b"%d 0 obj\n" % number
        if not body.startswith(opening) or b"endobj" not in body:
            raise ValueError(f"object {number} of the PDF is not where its table says")
        body = body[len(opening) : body.rindex(b"endobj")]
        head, mark, rest = body.partition(b"stream\n")
        found[number] = (head, mark + rest)
    return found, trailer


def _renamed_fonts(objects: dict[int, tuple[bytes, bytes]]) -> dict[int, tuple[bytes, bytes]]:
    """Call the fonts fo0, fo1 ... in the order of their names, in the resources and wherever text is drawn."""
    uses = {int(name): int(number) for head, _ in objects.values() for _, name, number in _FONT.findall(head)}
    named = sorted(uses, key=lambda one: _font_name(objects[uses[one]][0]))
    new = {old: place for place, old in enumerate(named)}

    def renamed(found: re.Match[bytes]) -> bytes:
        return b"/fo%d" % new[int(found[1])]

    changed = {}
    for number, (head, stream) in objects.items():
        text = _FONT.sub(lambda found: b"%s/fo%d %s 0 R" % (found[1], new[int(found[2])], found[3]), head)
        drawn = _drawn(text, stream)
        if drawn is None or not _CHOICE.search(drawn):
            changed[number] = (text, stream)
            continue
        packed = zlib.compress(_CHOICE.sub(renamed, drawn), 9)
        text = re.sub(rb"/Length \d+", b"/Length %d" % len(packed), text, count=1)
        changed[number] = (text, b"stream\n" + packed + b"\nendstream\n")
    return changed


def _font_name(head: bytes) -> bytes:
    found = re.search(rb"/BaseFont /(\S+)", head)
    return found[1] if found else b""


def _drawn(head: bytes, stream: bytes) -> bytes | None:
    """Return what a packed stream holds; None where there is none."""
    length = re.search(rb"/Length (\d+)", head)
    if not stream or length is None or b"/FlateDecode" not in head:
        return None
    return zlib.decompress(stream[len(b"stream\n") :][: int(length[1])])


def _sorted_resources(objects: dict[int, tuple[bytes, bytes]]) -> dict[int, tuple[bytes, bytes]]:
    def ordered(found: re.Match[bytes]) -> bytes:
        lines: list[bytes] = found[0].splitlines(keepends=True)
        lines.sort(key=_by_name)
        return b"".join(lines)

    return {number: (_ENTRIES.sub(ordered, head), stream) for number, (head, stream) in objects.items()}


def _by_name(line: bytes) -> tuple[int, bytes]:
    """Return the name that a line defines, so that gs10 comes behind gs9."""
    name = line.split()[0]
    return len(name), name


def _in_use(objects: dict[int, tuple[bytes, bytes]], roots: list[int]) -> list[int]:
    """Return the objects in the order in which they are first named, from the roots on."""
    order: list[int] = []
    waiting = [root for root in roots if root]
    while waiting:
        number = waiting.pop(0)
        if number not in order:
            order.append(number)
            waiting += [int(found) for found in _REFERENCE.findall(objects[number][0])]
    return order
