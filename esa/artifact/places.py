"""Tell whether an address names the same place in the models of two runs, and whether the units there correspond."""

from typing import Any

import polars as pl

from esa.artifact.gather import Gathered


def same_places(a: Gathered, b: Gathered) -> bool:
    """Tell whether an address names the same place in the models of two runs.

    It does in one model (equal fingerprints), and in models with as many weights whose tensors, those that both runs
    scored, have the same names and shapes. Where the manifests and tables cannot tell, it does not.
    """
    if (mark := fingerprint(a)) is not None and mark == fingerprint(b):
        return True
    if a.num_parameters is None or a.num_parameters != b.num_parameters:
        return False
    one, two = _shapes(a), _shapes(b)
    shared = one.keys() & two.keys()
    return bool(shared) and all(one[name] == two[name] for name in shared)


def trained_apart(a: Gathered, b: Gathered) -> bool:
    """Tell whether the manifests say that two models were trained from different seeds: their units do not correspond then."""
    one, two = ((run.model.get("training") or {}).get("seed") for run in (a, b))
    return one is not None and two is not None and one != two


def _shapes(run: Gathered) -> dict[str, tuple[Any, ...]]:
    if run.tensors is None:
        return {}
    whole = run.tensors.filter(pl.col("expert").is_null())  # fused experts have a row each beside their tensor's
    rows = whole.select("parameter", "shape", "numel").unique("parameter", keep="first").iter_rows()
    return {name: tuple(rest) for name, *rest in rows}


def fingerprint(run: Gathered) -> str | None:
    """Return the fingerprint of the run's model; None where no step says it, or the steps disagree."""
    found = {model.get("fingerprint") for model in models(run)} - {None}
    return str(found.pop()) if len(found) == 1 else None


def models(run: Gathered) -> list[dict[str, Any]]:
    """Return what each step says of its model."""
    return [manifest["model"] for manifest in run.manifests.values() if isinstance(manifest.get("model"), dict)]
