"""What ``esa arch`` prints: a headline, totals per component and block, tied and fused parts, storage, sizes."""

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from esa.cli.console import number, print_table
from esa.cli.plain import printable

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from esa.arch.description import Architecture

_NAMES = 4  # of a list that is only an example


def print_architecture(found: "Architecture", console: "Console") -> None:
    """Print the description of a model for people."""
    from esa.arch import totals

    frame = found.frame
    _print_headline(found, console)
    _print_components(frame, console)
    _print_blocks(frame, console)
    _print_parts(frame, console)
    _print_storage(found, console)
    rows = [[name, size(num_bytes)] for name, num_bytes in totals.sizes(frame).items()]
    print_table("The whole, held as", ["format", "bytes"], rows, right=["bytes"], console=console)
    _say(
        f"int8: a byte per weight and a float32 scale per row; nf4: half a byte and a float32 scale per"
        f" {totals.NF4_BLOCK} weights; both of the blocks' matrices, the rest as bfloat16.",
        console,
    )
    _print_scored(frame, console)


def size(num_bytes: int | None) -> str:
    """Return a number of bytes in the largest decimal unit that leaves a whole part, or a dash."""
    if num_bytes is None:
        return "-"
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.2f} {unit}"
    return f"{num_bytes} B"


def percent(share: float) -> str:
    """Return a share of one as percent; only all of it is 100.00, and only nothing is 0.00."""
    text = f"{100 * share:.2f}"
    if text == "0.00" and share > 0:
        return "<0.01"
    return ">99.99" if text == "100.00" and share < 1 else text


def _say(text: str, console: "Console") -> None:
    console.print(printable(text), markup=False)


def _print_headline(found: "Architecture", console: "Console") -> None:
    title = f"{found.facts['architecture']} ({found.facts['model_type']}): {found.section.id}"
    console.print(printable(title), markup=False, style="bold", soft_wrap=True)
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for name, text in _headline(found):
        grid.add_row(escape(name), escape(printable(text)))
    console.print(Padding(grid, (0, 0, 0, 2)))


def _headline(found: "Architecture") -> list[tuple[str, str]]:
    """Return name and text of each line below the title; a number that the model has not is left out."""
    facts, frame = found.facts, found.frame
    total = int(frame["numel"].sum())
    lines = [("weights", number(total)), *_active(facts, frame, total), ("embeddings", _embeddings(frame, total))]
    lines.append(("blocks", number(facts["num_blocks"])))
    if facts["hidden_size"]:
        lines.append(("hidden size", number(facts["hidden_size"])))
    if facts["num_heads"]:
        heads, kv_heads = facts["num_heads"], facts["num_kv_heads"]
        width = f" of {_several(facts['head_dim'])} channels" if facts["head_dim"] else ""
        shared = "" if kv_heads == heads else f"; {kv_heads} for keys and values"
        lines.append(("heads", f"{heads}{width}{shared}"))
    for key, name in (("intermediate_size", "MLP size"), ("expert_intermediate_size", "expert size")):
        if facts[key]:
            lines.append((name, _several(facts[key])))
    if facts["num_experts"]:
        per_token = facts["num_experts_per_tok"]
        used = "" if per_token is None else f"; a token uses {per_token}"
        lines.append(("experts", f"{_several(facts['num_experts'])} in a block{used}"))
    for key, name in (("activation", "activation"), ("vocab_size", "vocabulary"), ("context_length", "context")):
        if facts[key]:
            text = facts[key] if isinstance(facts[key], str) else number(facts[key])
            lines.append((name, f"{text} tokens" if key != "activation" else text))
    return [*lines, *(("note", note) for note in found.notes), *(("warning", text) for text in found.warnings)]


def _active(facts: dict[str, Any], frame: "pl.DataFrame", total: int) -> list[tuple[str, str]]:
    if not frame["active"].null_count() and not facts["num_experts"]:
        return []
    if frame["active"].null_count():
        return [("active", "not known")]
    active = int(frame["active"].sum())
    return [("active", f"{number(active)} per token ({percent(active / total)} %)")]


def _embeddings(frame: "pl.DataFrame", total: int) -> str:
    import polars as pl

    embed = frame.filter(pl.col("component") == "embed")
    weights = int(embed["numel"].sum())
    share = f"{number(weights)} ({percent(weights / total)} %)"
    head = int(frame.filter(pl.col("component") == "lm_head")["numel"].sum())
    if head:
        return f"{share}, and {number(head)} in a head of its own"
    return f"{share}, tied to the head" if embed["tied"].any() else share


def _several(value: Any) -> str:
    if isinstance(value, list):
        return f"{number(value[0])} to {number(value[-1])}"
    return number(value)


def _print_components(frame: "pl.DataFrame", console: "Console") -> None:
    from esa.arch import totals

    rows = totals.component_totals(frame).to_dicts()
    sparse = any(row["active"] != row["numel"] for row in rows)
    mixed = len({row["dtype"] for row in rows}) > 1
    header = ["component", "tensors", "weights", "%", *(["active"] if sparse else []), "bytes"]
    header += ["dtype"] if mixed else []
    cells = [
        [row["component"], number(row["tensors"]), number(row["numel"]), percent(row["share"]),
         *([number(row["active"])] if sparse else []), size(row["bytes"]), *([row["dtype"] or "-"] if mixed else [])]
        for row in rows
    ]  # fmt: skip
    title = "Components" if mixed else f"Components, all {rows[0]['dtype'] or 'of no known dtype'}"
    print_table(
        title, header, cells, right=[name for name in header[1:] if name != "dtype"], wrap=["dtype"], console=console
    )


def _print_blocks(frame: "pl.DataFrame", console: "Console") -> None:
    from esa.arch import totals

    groups = totals.block_groups(frame)
    sparse = any(group.active != group.numel for group in groups)
    header = ["blocks", "tensors", "weights", *(["active"] if sparse else []), "bytes", "all together"]
    rows = [
        [totals.ranges(group.blocks), number(group.num_tensors), number(group.numel),
         *([number(group.active)] if sparse else []), _span(group.num_bytes), number(group.numel * len(group.blocks))]
        for group in groups
    ]  # fmt: skip
    same = "all of one make" if len(groups) == 1 else f"{len(groups)} makes"
    print_table(f"Blocks, each ({same})", header, rows, right=header[1:], wrap=["blocks"], console=console)


def _span(num_bytes: tuple[int, int] | None) -> str:
    if num_bytes is None:
        return "-"
    low, high = num_bytes
    return size(low) if low == high else f"{size(low)} to {size(high)}"


def _print_parts(frame: "pl.DataFrame", console: "Console") -> None:
    """Print which tensors have several names, and which hold several projections or experts."""
    from esa.arch import totals

    lines = [f"{' = '.join(reversed(names))}, counted once" for names in totals.tied_parts(frame)]
    _print_lines("Tied", lines, console)
    lines = []
    for part in totals.fused_parts(frame):
        of_experts = f" of {part.num_experts} experts" if part.num_experts else ""
        shape = " x ".join(str(axis) for axis in part.shape)
        lines.append(f"{part.component}: {part.parts}{of_experts} in each of {part.num_tensors} tensors of {shape}")
    _print_lines("Fused", lines, console)


def _print_lines(title: str, lines: list[str], console: "Console") -> None:
    if lines:
        console.print()
        console.print(title, style="bold")
        for line in lines:
            _say(line, console)


def _print_storage(found: "Architecture", console: "Console") -> None:
    """Print what the files hold by dtype, and which of their tensors are no parameters."""
    from esa.arch import totals

    if found.files is None:
        return
    parts = totals.dtype_totals(found.stored).to_dicts()
    whole = {"dtype": "together"} | {key: sum(row[key] for row in parts) for key in ("tensors", "numel", "bytes")}
    rows = [
        [row["dtype"], number(row["tensors"]), number(row["numel"]), size(row["bytes"]),
         f"{8 * row['bytes'] / max(row['numel'], 1):.2f}"]
        for row in ([*parts, whole] if len(parts) > 1 else parts)
    ]  # fmt: skip
    header = ["dtype", "tensors", "weights", "bytes", "bits each"]
    print_table("In the files", header, rows, right=header[1:], console=console)
    if found.extra:
        bytes_ = size(sum(tensor.num_bytes for tensor in found.extra))
        _say(f"{_examples([tensor.name for tensor in found.extra])}: {bytes_} that match no parameter", console)


def _print_scored(frame: "pl.DataFrame", console: "Console") -> None:
    """Print how much esa scores by default, what it leaves out, and what it cannot name."""
    import polars as pl

    from esa.arch import totals

    total = int(frame["numel"].sum())
    weights = int(totals.scored(frame)["numel"].sum())
    lines = [f"{number(weights)} of {number(total)} weights: tensors of two dimensions or more"]
    left = totals.component_totals(totals.not_scored(frame)).to_dicts()
    if left:
        parts = [f"{row['component']} {number(row['numel'])}" for row in left]
        lines.append(f"left out, of one dimension: {', '.join(parts)}")
    _print_lines("Scored by default", lines, console)
    other = totals.names_without_block(frame.filter(pl.col("component") == "other"))
    _print_lines("Of a role that esa does not know (other)", other, console)


def _examples(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return shown if len(names) <= _NAMES else f"{shown} and {len(names) - _NAMES} more"
