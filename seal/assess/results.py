"""results.json: what an evaluation found, and everything it was computed from."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from seal.assess.prompts import read_object
from seal.errors import InputError
from seal.files import atomic_path
from seal.statistics import bootstrap_ci, clopper_pearson, paired_bootstrap

FORMAT = "seal-results-1"

# Measures and the direction in which a safe and useful model moves them.
HIGHER_IS_BETTER = {
    "refusal": True,  # harmful prompts: full refusals
    "over_refusal": False,  # harmless prompts: full and partial refusals
    "harmfulness": False,  # harmful prompts: rating from 1 to 5
    "unsafe": False,  # harmful prompts: a guard's probability
    "win_rate": True,  # against a reference, ties one half
    "exact_match": True,
    "log_perplexity": False,  # of the references: mean over rows of nats a token
}


@dataclass
class Measure:
    """One figure of one model on one prompt set by one judge.

    Attributes:
        n: Items that the value is the mean of; `unscored` items were left out and are counted.
        value, low, high: The mean and its interval (exact binomial for yes or no, percentile
            bootstrap otherwise); None when nothing was scored.
        standard_error: Of the mean; None below two items, and where only the interval is had.
        counts: How often each label was given, "unscored" included.
        by_category: The same by category of the prompt: {"n", "unscored", "value", "low", "high"}.
        details: Further numbers ("consistency", "perplexity").
    """

    model: str
    prompt_set: str
    measure: str
    judge: str
    n: int
    unscored: int
    value: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    higher_is_better: bool
    counts: dict[str, int] = field(default_factory=dict)
    by_category: dict[str, dict] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)


@dataclass
class Comparison:
    """Paired bootstrap of model `a` against model `b` over the items that both have scored."""

    a: str
    b: str
    prompt_set: str
    measure: str
    judge: str
    n: int
    difference: float
    low: float
    high: float
    p_value: float


@dataclass
class Results:
    """All of results.json; docs/evaluation.md describes each field.

    Attributes:
        format: FORMAT.
        command, seed, confidence, versions, commit: How the figures were made.
        prompt_sets: {"name", "kind", "path", "sha256", "n"} each.
        answers: {"model", "prompt_set", "path", "sha256", "settings"} each; settings are None for
            answers that were given as a file without them.
        judges: {"name", "base_url", "calls", "cached", "prompt_tokens", "completion_tokens"} each.
        verdicts: {"path", "sha256", "n"} of the record of every verdict.
        tuned_on: Rows that a model was fine-tuned on, where known.
        seconds: Wall time by stage, where known.
    """

    format: str
    command: str
    seed: int
    confidence: float
    versions: dict[str, str]
    commit: str | None
    prompt_sets: list[dict]
    answers: list[dict]
    judges: list[dict]
    measures: list[Measure]
    comparisons: list[Comparison]
    verdicts: dict
    tuned_on: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Scores:
    """Values of one measure item by item, from which `Measure` and `Comparison` are made.

    Attributes:
        values: float64 [N], NaN where unscored. Items of equal index are the same prompt.
        labels: [N] the judge's labels.
        categories: [N] of the prompts, "" for none.
    """

    model: str
    prompt_set: str
    measure: str
    judge: str
    values: np.ndarray
    labels: Sequence[str]
    categories: Sequence[str]


def summarise(scores: Scores, seed: int) -> Measure:
    """Mean, interval, counts and categories of item scores."""
    counts: dict[str, int] = {}
    for label in scores.labels:
        counts[label] = counts.get(label, 0) + 1
    whole = _mean(scores.values, seed)
    known = scores.values[~np.isnan(scores.values)]
    spread = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    categories = np.array(scores.categories, dtype=object)
    names = sorted(set(categories) - {""})
    return Measure(
        model=scores.model,
        prompt_set=scores.prompt_set,
        measure=scores.measure,
        judge=scores.judge,
        **whole,
        standard_error=spread,
        higher_is_better=HIGHER_IS_BETTER[scores.measure],
        counts=counts,
        by_category={name: _mean(scores.values[categories == name], seed) for name in names},
    )


def _mean(values: np.ndarray, seed: int) -> dict:
    known = values[~np.isnan(values)]
    n, unscored = len(known), len(values) - len(known)
    if not n:
        return {"n": 0, "unscored": unscored, "value": None, "low": None, "high": None}
    if np.isin(known, (0.0, 1.0)).all():
        low, high = clopper_pearson(int(known.sum()), n)
    else:
        _, low, high = bootstrap_ci(known, seed=seed)
    value = float(known.mean())
    return {"n": n, "unscored": unscored, "value": value, "low": low, "high": high}


def compare(every: Sequence[Scores], seed: int) -> list[Comparison]:
    """Each pair of models that share a prompt set, measure and judge, in order of appearance."""
    found = []
    for i, a in enumerate(every):
        for b in every[i + 1 :]:
            same = (a.prompt_set, a.measure, a.judge) == (b.prompt_set, b.measure, b.judge)
            both = ~np.isnan(a.values) & ~np.isnan(b.values) if same else np.zeros(0, bool)
            if not both.any():
                continue
            gap = paired_bootstrap(a.values[both], b.values[both], seed)
            found.append(
                Comparison(
                    a.model, b.model, a.prompt_set, a.measure, a.judge, int(both.sum()), *gap
                )
            )
    return found


def write_results(path: str | os.PathLike, results: Results, **further: object) -> None:
    """Writes results.json, whole or not at all, with `further` keys; NaN is not allowed in it."""
    with atomic_path(path) as tmp:
        content = asdict(results) | further
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        tmp.write_text(text + "\n", encoding="utf-8")


def read_results(path: str | os.PathLike) -> Results:
    """Reads results.json; keys beside its own are left out.

    Raises:
        InputError: not one of these files, or of another format.
    """
    raw = read_object(path)
    if raw.get("format") != FORMAT:
        raise InputError(f"{path} has format {raw.get('format')!r}, {FORMAT!r} is read; run again")
    try:
        raw = {f.name: raw[f.name] for f in fields(Results) if f.name in raw}
        raw["measures"] = [Measure(**one) for one in raw["measures"]]
        raw["comparisons"] = [Comparison(**one) for one in raw["comparisons"]]
        return Results(**raw)
    except (TypeError, KeyError) as error:
        raise InputError(f"{path} is not a results file: {error}") from error
