"""Does a profile tell the family? A classifier that leaves one model out at a time, and the features that carry it."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.roles import with_role
from esa.arch.comparison.scored import Scored, all_scored
from esa.arch.comparison.sources import Labelled
from esa.arch.comparison.tree import NUM_DEPTHS, profile
from esa.spec import generator
from esa.statistics.permutation import monte_carlo_p
from esa.statistics.proportions import wilson_interval

Array = npt.NDArray[np.float64]
QUESTION, QUANTITY = "family classifier", "accuracy"
FEWEST_FAMILIES, FEWEST_MODELS = 2, 3  # models of each family
_MOST_REFITS = 99  # relabellings, each of as many fits as there are models
_ROLES = ("attention in", "attention out", "mlp in", "mlp out", "vocabulary")


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Predict each model's family from the profiles of the others, metric by metric: ``features/1`` and comparison/1.

    Features of a run: ln density of each role, share of the blocks' score by fifth of the depth; standardised on the
    training models; logistic regression with an L2 penalty of 1, classes balanced. Left out is one MODEL at a time, all its
    training seeds together; its prediction is the family of the highest mean probability over its runs.

    comparison/1, question ``family classifier``: ``accuracy`` over models, Wilson's interval, ``expected`` the mean
    over relabellings of the models, p ``(1 + #{accuracy* >= accuracy}) / (1 + R)``; where at most 99 relabellings exist all
    are counted, the true one among them. features/1: ``importance`` is the mean over folds of the mean absolute coefficient
    over classes, ``low`` and ``high`` the smallest and largest of the folds (a range, no confidence interval), most important
    first; ``families``: all of them, from the highest mean of the feature to the lowest.
    Refused under 2 families with 3 models each; models of smaller families, or of none that is known, are left out and named.
    Cost: (1 + R) fits per model, milliseconds each.
    Source: Ojala and Garriga, "Permutation tests for studying classifier performance", JMLR 11, 2010.
    """
    tables: dict[str, list[Row]] = {"features/1": [], "comparison/1": []}
    for metric in options.metrics:
        subjects = all_scored(runs, metric, options)
        if not subjects:
            continue
        features, row = classify(subjects, options)
        tables["features/1"] += features
        tables["comparison/1"].append(row)
    return Found(tables, adjust=frozenset({QUESTION}))


def run_features(one: Scored) -> dict[str, float]:
    """Return the features of a run by name; a density of a role without score is left out."""
    tensors = with_role(one.tensors)
    total, numel = float(tensors["sum"].sum()), int(tensors["numel"].sum())
    found: dict[str, float] = {}
    for role in _ROLES:
        part = tensors.filter(pl.col("role") == role)
        score, weights = float(part["sum"].sum()), int(part["numel"].sum())
        if score > 0:
            found[f"log density of {role}"] = math.log(score / total * numel / weights)
    shares = profile(one)
    inside = sum(value for (_, depth), value in shares.items() if depth is not None)
    for depth in range(NUM_DEPTHS) if inside > 0 else ():
        here = sum(value for (_, at), value in shares.items() if at == depth)
        found[f"score share at depth {depth / NUM_DEPTHS:g} to {(depth + 1) / NUM_DEPTHS:g}"] = here / inside
    return found


def classify(subjects: Sequence[Scored], options: Options) -> tuple[list[Row], Row]:
    """Return the rows of features/1 and the row of comparison/1 for the runs' scores by one metric."""
    metric, about = subjects[0].metric, "all runs"
    families: dict[str, set[str]] = {}
    for one in subjects:
        if one.family is not None:
            families.setdefault(one.family, set()).add(one.model)
    kept = sorted(family for family, models in families.items() if len(models) >= FEWEST_MODELS)
    left_out = [one.label for one in subjects if one.family not in kept]
    if len(kept) < FEWEST_FAMILIES:
        counts = ", ".join(f"{family} {len(models)}" for family, models in sorted(families.items())) or "none is known"
        why = (
            f"models by family: {counts}; at least {FEWEST_FAMILIES} families of {FEWEST_MODELS} models each are needed"
        )
        return [], compared(QUESTION, about, metric, None, QUANTITY, why=why)
    used = [one for one in subjects if one.family in kept]
    rows = [run_features(one) for one in used]
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if all(name in row for row in rows)]
    points = np.array([[row[name] for name in names] for row in rows])  # (runs, features)
    models = list(dict.fromkeys(one.model for one in used))
    groups = np.array([models.index(one.model) for one in used])
    of_model = np.array([next(kept.index(str(o.family)) for o in used if o.model == model) for model in models])
    right, weights = leave_one_out(points, groups, of_model)
    null, exact = _null(points, groups, of_model, options, metric)
    p = float(np.mean(np.asarray(null) >= right - 1e-9)) if exact else monte_carlo_p(right, null)
    low, high = wilson_interval(right, len(models), options.level)
    order = np.argsort(-weights.mean(axis=0), kind="stable")
    features: list[Row] = []
    for place in order.tolist():
        means = [float(points[of_model[groups] == number, place].mean()) for number in range(len(kept))]
        ordered = sorted(range(len(kept)), key=lambda number: -means[number])
        features.append({
            "metric": metric, "feature": names[place], "importance": float(weights[:, place].mean()),
            "low": float(weights[:, place].min()), "high": float(weights[:, place].max()),
            "families": ", ".join(kept[number] for number in ordered),
        })  # fmt: skip
    row = compared(
        QUESTION, about, metric, ", ".join(kept), QUANTITY, value=right / len(models), low=low, high=high,
        expected=float(np.mean(null)) / len(models), null="families relabelled" + (", all of them" if exact else ""),
        p_value=p, smallest_p=float(np.mean(np.asarray(null) >= max(null) - 1e-9)) if exact else 1 / (1 + len(null)),
        num=len(models), why=f"left out: {', '.join(left_out)}" if left_out else None,
    )  # fmt: skip
    return features, row


def leave_one_out(points: Array, groups: npt.NDArray[np.int64], of_model: npt.NDArray[np.int64]) -> tuple[int, Array]:
    """Return how many models are put into their family, and each fold's mean absolute coefficients ``(models, features)``.

    Shapes: points ``(runs, features)``; groups ``(runs,)``, the model of each run; of_model ``(models,)``, its family.
    """
    from sklearn.linear_model import LogisticRegression

    right, weights = 0, []
    for model in range(len(of_model)):
        train = groups != model
        centre, spread = points[train].mean(axis=0), points[train].std(axis=0)
        scaled = (points - centre) / np.where(spread > 1e-12, spread, 1.0)
        fitted = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scaled[train], of_model[groups[train]])
        chances = fitted.predict_proba(scaled[~train]).mean(axis=0)
        right += int(fitted.classes_[int(chances.argmax())] == of_model[model])
        weights.append(np.abs(fitted.coef_).mean(axis=0))
    return right, np.array(weights)


def _null(
    points: Array, groups: npt.NDArray[np.int64], of_model: npt.NDArray[np.int64], options: Options, metric: str
) -> tuple[list[int], bool]:
    """Return how many models are right under relabellings of the models, and whether these are all that there are."""
    times = min(options.permutations, _MOST_REFITS)
    number = math.factorial(len(of_model)) // math.prod(math.factorial(n) for n in Counter(of_model.tolist()).values())
    if number <= times:
        every = [np.array(one) for one in _arrangements(Counter(of_model.tolist()), len(of_model))]
        return [leave_one_out(points, groups, one)[0] for one in every], True
    draw = generator(options.seed, QUESTION, metric)
    return [leave_one_out(points, groups, draw.permutation(of_model))[0] for _ in range(times)], False


def _arrangements(counts: Counter[int], length: int) -> Iterator[list[int]]:
    """Yield every distinct order of the labels."""
    if not length:
        yield []
    for label in sorted(counts):
        if counts[label]:
            for rest in _arrangements(counts - Counter([label]), length - 1):
                yield [label, *rest]
