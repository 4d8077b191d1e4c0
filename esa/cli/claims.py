"""What a campaign's claims come to, as ``esa perturb`` and ``esa run`` print it."""

from pathlib import Path
from typing import Any

from esa.cli.console import number, print_line

_WORDS = {
    "hurts": "hurts",
    "more_than_random": "does more harm than random weights",
    "more_than_bottom": "does more harm than the bottom ones",
    "more_than_matched": "does more harm than matched ones",
    "no_harm": "does no harm",
}


def print_claims(folder: Path) -> None:
    """Print the confirmatory test of a perturb step in a sentence, and per claim how many of the screen hold."""
    from esa.artifact import find_table

    rows = find_table(folder, "tests/1").frame.to_dicts()
    for row in rows:
        if row["phase"] == "confirmatory":
            print_line(confirmed_sentence(row))
    broken = sum(row["claim"] == "hurts" and "nonfinite" in (row["flags"] or "").split(",") for row in rows)
    if broken:
        print_line(f"Left NaN or infinite logits, which no test of windows counts: {broken} of {_num_hurts(rows)}.")
    screen = [row for row in rows if row["phase"] == "screen" and row["p_value"] is not None]
    if not screen:
        return
    level = number(screen[0]["level"], 2)
    parts = []
    for claim, words in _WORDS.items():
        family = [row for row in screen if row["claim"] == claim]
        if family:
            out_of_reach = [row for row in family if "unattainable" in (row["flags"] or "")]
            fewest = min((row["num_draws"] for row in out_of_reach if row["num_draws"] is not None), default=None)
            why = "" if fewest is None else f" of {number(fewest)} draws"
            beyond = f", {number(len(out_of_reach))} out of reach{why}" if out_of_reach else ""
            parts.append(f"{words}: {sum(bool(row['holds']) for row in family)} of {len(family)}{beyond}")
    few = " Few windows: intervals and p are rough." if any("few_windows" in (r["flags"] or "") for r in screen) else ""
    print_line(f"Screen, false discovery rate {level}: {'; '.join(parts)}.{few}")


def _num_hurts(rows: list[dict[str, Any]]) -> int:
    return sum(row["claim"] == "hurts" for row in rows)


def confirmed_sentence(row: dict[str, Any]) -> str:
    """Return what the confirmatory test found."""
    what = f"{row['method']} of {row['metric']}'s top {number(row['k'])}"
    verdict = "holds" if row["holds"] else "does not hold"
    damage = "broke the model" if row["estimate"] is None else f"cost {number(row['estimate'])} nats per token"
    if row["low"] is not None and row["high"] is not None:
        damage += f" ({number(row['low'])} to {number(row['high'])})"
    ratio = (
        "" if row["ratio"] is None else f", at least {number(row['ratio'], 3)} times the largest random draw or noise"
    )
    return (
        f"Confirmatory: {what} {damage}{ratio}; p = {number(row['p_value'], 2)} among {number(row['num_draws'])} random"
        f" draws, the smallest there can be {number(row['smallest_p'], 2)}: it {verdict} at {number(row['level'], 2)}."
    )
