"""Where the numbers come from and how to get them again: all of it read from the manifests."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from esa.artifact.gather import BETWEEN, Gathered
from esa.report.markdown import MISSING, block, code, escape, number, size, table

DATA_HEADER = ["used by", "source", "packing", "windows", "length", "tokens", "BOS", "sha256 of the token ids"]
DATA_ALIGN = "lllrrrll"
STEP_HEADER, STEP_ALIGN = ["step", "id", "finished (UTC)", "seeds", "seconds", "peak resident"], "llllrr"
ARTIFACT_HEADER = ["file", "kind", "sha256"]
_MODEL = (
    *("id", "revision", "null", "null_seed", "architecture", "fingerprint"),
    *("dtype", "compute", "quantization", "residency", "device"),
)
_UNUSUAL = ("null", "null_seed", "residency")  # shown where a manifest has them


def model_table(run: Gathered) -> str:
    """Return what the manifests say of the model; more than one value where the steps disagree."""
    rows = model_rows(run)
    return table(["model", ""], rows) if rows else ""


def model_rows(run: Gathered) -> list[list[str]]:
    """Return what the manifests say of the model: a name and its value, more than one where the steps disagree."""
    models = [manifest["model"] for manifest in run.manifests.values() if isinstance(manifest.get("model"), dict)]
    rows = [
        [key, _several(model.get(key) for model in models)]
        for key in _MODEL
        if key not in _UNUSUAL or any(key in model for model in models)
    ]
    rows += [
        [
            key.replace("num_", "").replace("eligible", "eligible for scoring"),
            _several(map(number, _known(models, key))),
        ]
        for key in ("num_parameters", "num_eligible")
        if _known(models, key)
    ]
    return [row for row in rows if row[1] != MISSING]


def data_table(run: Gathered) -> str:
    """Return a row per set of token windows."""
    rows = data_rows(run)
    return table(DATA_HEADER, rows, DATA_ALIGN) if rows else ""


def data_rows(run: Gathered) -> list[list[str]]:
    """Return the cells of :func:`data_table`."""
    rows = []
    for step, manifest in run.manifests.items():
        data = manifest.get("data")
        for entry in data if isinstance(data, list) else [data] if isinstance(data, dict) else []:
            use = step if entry.get("seed") is None else f"{step}, seed {entry['seed']}"
            bos = {True: "yes", False: "no", None: MISSING}.get(entry.get("bos"), escape(entry.get("bos")))
            rows.append([
                escape(use), code(entry.get("source")), escape(entry.get("packing")), number(entry.get("windows")),
                number(entry.get("length")), number(entry.get("tokens")), bos, code(entry.get("sha256")),
            ])  # fmt: skip
    return rows


def step_table(run: Gathered) -> str:
    """Return a row per step: its id, when, how long, how much memory."""
    return table(STEP_HEADER, step_rows(run), STEP_ALIGN)


def step_rows(run: Gathered) -> list[list[str]]:
    """Return the cells of :func:`step_table`."""
    return [
        [
            step, code(manifest["run"]), _moment(manifest.get("created")), _seeds(manifest.get("seeds")),
            number(manifest.get("seconds")), size(manifest.get("peak_memory_bytes")),
        ]
        for step, manifest in run.manifests.items()
    ]  # fmt: skip


def environment_lines(run: Gathered) -> list[str]:
    """Return software, hardware and commit, once where the steps agree."""
    manifests = run.manifests.values()
    lines = [
        f"esa {_several((one.get('esa') for one in manifests), escape)},"
        f" Python {_several((one.get('python') for one in manifests), escape)}"
    ]
    packages: dict[str, list[Any]] = {}
    for manifest in manifests:
        for name, version in (manifest.get("packages") or {}).items():
            packages.setdefault(name, []).append(version)
    if packages:
        lines.append(
            "Packages: " + ", ".join(f"{escape(name)} {_several(found, escape)}" for name, found in packages.items())
        )
    hardware = [_pairs(one.get("hardware")) for one in manifests if one.get("hardware")]
    if hardware:
        lines.append(f"Hardware: {_several(hardware, escape)}")
    lines.append(f"Commit: {_several((_commit(one.get('git')) for one in manifests), escape)}")
    return lines


def check_lines(run: Gathered) -> list[str]:
    """Return what the steps checked and warned of."""
    lines = []
    for step, manifest in run.manifests.items():
        checksum = manifest.get("checksum")
        if isinstance(checksum, dict):
            restored = "restored" if checksum.get("restored") else "**NOT restored**"
            before, after = code(checksum.get("before"), cell=False), code(checksum.get("after"), cell=False)
            what = "the perturbations" if step == "perturb" else f"step {step}"
            lines.append(f"Weights after {what}: {restored} (checksum before {before}, after {after})")
    for step, manifest in run.manifests.items():
        lines += [f"Warning from {step}: {escape(text)}" for text in manifest.get("warnings") or []]
    lines += [f"Warning: {escape(text)}" for text in run.warnings]
    if not any(line.startswith("Warning") for line in lines):
        lines.append("No step gave a warning")
    return lines


def commands(run: Gathered) -> list[str]:
    """Return the blocks of shell that repeat the run: as it was called, and step by step from the resolved specs."""
    called = list(
        dict.fromkeys(shlex.join(manifest["argv"]) for manifest in run.manifests.values() if manifest.get("argv"))
    )
    steps = []
    for step in run.folders:
        folder = run.shown(step)
        spec = f"--spec {shlex.quote(f'{folder}/spec.toml')}"
        source = shlex.quote(run.shown("rank")) if "rank" in run.folders else "RANKING"
        scores = shlex.quote(run.shown("score")) if "score" in run.folders else "SCORES"
        steps.append({
            "score": f"esa score {spec}",
            "rank": f"esa rank {scores} {spec}",
            "perturb": f"esa perturb {spec} --targets {source}",
            "overlap": f"esa overlap {source} {spec}",
            "truth": f"esa perturb {spec} --validate {scores}",
            "detector": f"esa perturb {spec} --detect {scores}",
            "faults": f"esa perturb {spec} --faults",
            "eval": f"esa eval {spec}",
            **{name: _across(name, run.manifests[step]) for name in BETWEEN},
        }.get(step) or f"esa overlap {source} {spec} --curve {step.partition(' ')[2]}")  # fmt: skip
    steps.append(f"esa report {' '.join(shlex.quote(run.shown(step)) for step in run.folders)}")
    parts = []
    if called:
        parts += ["As it was called:", block(called, "sh")]
    return [*parts, "Step by step (a finished step is reused; `--force` computes it again):", block(steps, "sh")]


def _across(step: str, manifest: Mapping[str, Any]) -> str:
    """Return how a step that reads several runs was called: no spec and no input says where they lay."""
    argv = manifest.get("argv") or []
    return shlex.join(argv) if argv[1:2] == [step] else f"esa {step} RUN..."


def artifact_table(run: Gathered) -> str:
    """Return every file that the steps vouch for, with its sha256."""
    return table(ARTIFACT_HEADER, artifact_rows(run))


def artifact_rows(run: Gathered) -> list[list[str]]:
    """Return the cells of :func:`artifact_table`."""
    return [
        [code(f"{run.shown(step)}/{name}"), escape(manifest.get("kinds", {}).get(name)), code(digest)]
        for step, manifest in run.manifests.items()
        for name, digest in manifest.get("outputs", {}).items()
    ]


def _several(values: Iterable[Any], shown: Any = None) -> str:
    """Return the distinct values, null left out: one where all agree."""
    show = shown or (
        lambda value: value if isinstance(value, str) and value[:1].isdigit() and "," in value else code(value)
    )
    found = list(dict.fromkeys(show(value) for value in values if value is not None))
    return "; ".join(found) if found else MISSING


def _known(models: list[dict[str, Any]], key: str) -> list[int]:
    return [model[key] for model in models if isinstance(model.get(key), int)]


def _moment(created: Any) -> str:
    """Return ``2026-01-31 12:00:00`` of a time that is in UTC and says so."""
    return escape(created.removesuffix("+00:00").replace("T", " ") if isinstance(created, str) else created)


def _seeds(seeds: Any) -> str:
    return escape(", ".join(map(str, seeds))) if isinstance(seeds, list) and seeds else MISSING


def _pairs(facts: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items()) if isinstance(facts, dict) else str(facts)


def _commit(git: Any) -> str | None:
    if not isinstance(git, dict) or not git.get("commit"):
        return None
    return f"{git['commit']}{', with uncommitted changes' if git.get('dirty') else ''}"
