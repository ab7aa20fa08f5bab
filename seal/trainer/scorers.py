"""What each one-pass method makes of the passes, and what that costs and is worth."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seal.errors import InputError, known
from seal.ids import folds_of
from seal.selection import representation
from seal.statistics import reliability
from seal.trainer.passes import Passes

CONTRAST_FLOOR = 0.1  # nats a token below which a loss is as good as learned


def relative_contrast(rows_loss: np.ndarray, safe_loss: np.ndarray) -> np.ndarray:
    """How much of a row's loss is explained by the user's rows and not by the safe set.

    `log((rows_loss + floor) / (safe_loss + floor))`: near 0 for a row that both models find easy
    and for one that both find hard, far below 0 for one that only the user's rows teach. The plain
    difference grows with how hard a row is, and so does its noise; the ratio does not.

    Args:
        rows_loss: float [N], nats a token under a model tuned on the user's rows, best one that
            has not seen the row itself.
        safe_loss: float [N], under a model tuned on the safe set.

    Returns:
        float [N], higher = keep.
    """
    return np.log((rows_loss + CONTRAST_FLOOR) / (safe_loss + CONTRAST_FLOOR))


def random_scores(n_rows: int, seed: int) -> np.ndarray:
    """Uniform scores: float64 [n_rows] in [0, 1)."""
    return np.random.default_rng(seed).random(n_rows)


def dsir_scores(rows: Iterable[str], target: Iterable[str]) -> np.ndarray:
    """Log importance weight of each row under hashed n-gram models of the target and the rows.

    One process, no length floor and no resampling, so the result has no randomness.

    Source: Xie et al. 2023 (arXiv 2302.03169), through the package `data-selection`.

    Returns:
        float64 [N], higher = more like the target.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from data_selection import HashedNgramDSIR
    except ImportError as error:
        raise InputError("--method dsir needs data-selection: pip install -e .[dsir]") from error
    with tempfile.TemporaryDirectory() as scratch:
        paths = []
        for name, texts in (("rows", rows), ("target", target)):
            path = Path(scratch) / f"{name}.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            paths.append([str(path)])
        dsir = HashedNgramDSIR(*paths, cache_dir=scratch, num_proc=1, min_example_length=0)
        dsir.fit_importance_estimator(num_tokens_to_fit="all")
        dsir.compute_importance_weights()
        return np.load(dsir.log_importance_weights_dir / "0.npy").astype(np.float64)


Columns = dict[str, np.ndarray]  # of the artefact: score [N], higher = keep, and what it is made of


def _perplexity(passes: Passes) -> Columns:
    """Minus the loss of the model as it comes."""
    loss = passes.start_loss()
    return {"score": -loss, "loss": loss}


def _ifd(passes: Passes) -> Columns:
    """Minus the instruction-following difficulty: loss given the prompt over loss without.

    Source: Li et al. 2024 (arXiv 2308.12032).
    """
    loss = passes.start_loss()
    return {"score": -loss / passes.response_loss(), "loss": loss}


def _safe_loss(passes: Passes) -> Columns:
    """Minus the loss of a model tuned on the safe rows."""
    loss = passes.safe_loss()
    return {"score": -loss, "loss": loss}


def _excess_loss(passes: Passes) -> Columns:
    """Loss tuned on the rows minus loss tuned on the safe rows."""
    loss = passes.rows_loss()
    return {"score": loss - passes.safe_loss(), "loss": loss}


def _relative_excess(passes: Passes) -> Columns:
    """Ratio of the loss tuned on other rows of the user to the loss tuned on the safe rows."""
    loss = passes.out_of_fold_loss()
    return {"score": relative_contrast(loss, passes.safe_loss()), "loss": loss}


def _influence(passes: Passes) -> Columns:
    """Change of a row's loss along one step down the safe loss, by central difference.

    The step is Adam's first, the sign of the mean safe gradient. Equals the inner product of
    TracIn (Pruthi et al. 2020) and LESS (Xia et al. 2024) without a gradient per row.
    """
    down, up = passes.nudged_loss(1.0), passes.nudged_loss(-1.0)
    return {"score": (up - down) / (2 * passes.tuning.influence_step), "loss": (up + down) / 2}


def _dsir(passes: Passes) -> Columns:
    """Importance weight of the text."""
    return {"score": dsir_scores(*passes.texts())}


def _random(passes: Passes) -> Columns:
    """Nothing but chance."""
    return {"score": random_scores(len(passes.rows), passes.tuning.seed)}


def _by_anchors(method: str, passes: Passes) -> Columns:
    """A function of hidden states, at the layer where it tells held-out anchors apart best."""
    safe, unsafe = passes.anchors(passes.layers)
    if passes.half is None:
        groups = [folds_of(rows.ids, representation.FOLDS) for rows in (passes.safe, passes.unsafe)]
        judged = passes.parts.strategy.from_rank_0(  # ranks must agree on the layer
            lambda: representation.judged(method, safe, unsafe, groups)
        )
        passes.evidence = {"anchors": judged, "halves": "the anchors"}
    layer = passes.evidence["anchors"]["layer"]
    states = passes.states(layer)
    if method == "probe":
        head = representation.fit_probe(safe[layer], unsafe[layer])
        passes.head = head.to_meta(layer)
        return {"score": head.predict(states.features)}
    return {"score": representation.METHODS[method](states, safe[layer], unsafe[layer])}


def _pu_probe(passes: Passes) -> Columns:
    """How unlike the safe rows a row is, at the middle of the layers; needs no known-bad row."""
    layer = representation.middle(passes.layers)
    states, (safe, *_) = passes.states(layer), passes.anchors([layer])
    groups, half = folds_of(passes.rows.ids, representation.FOLDS), passes.half
    if half is None:
        some = representation.spaced(len(groups))
        sides = folds_of(passes.safe.ids, representation.FOLDS), groups[some]
        area = representation.held_out_auroc("probe", safe[layer], states.at(some), sides)
        passes.evidence = {"halves": "the safe rows and the rows", "safe_above_rows": area}
    shown = None if half is None else folds_of(passes.rows.ids, 2) == half
    return {"score": representation.pu_probe(states, safe[layer], groups, shown)}


def _subspace(passes: Passes) -> Columns:
    """A row's part in the strongest directions of all rows, at the middle of the layers."""
    passes.evidence = {"halves": "the rows"}
    states = passes.states(representation.middle(passes.layers))
    half = None
    if passes.half is not None:
        half = states.at(folds_of(passes.rows.ids, 2) == passes.half)
    return {"score": representation.subspace(states, half)}


METHODS = {
    "random": _random,
    "dsir": _dsir,
    "perplexity": _perplexity,
    "ifd": _ifd,
    "safe_loss": _safe_loss,
    "excess_loss": _excess_loss,
    "relative_excess": _relative_excess,
    "influence": _influence,
    "subspace": _subspace,
    "pu_probe": _pu_probe,
    **{name: partial(_by_anchors, name) for name in representation.METHODS},
}
MODEL_FREE = ("random", "dsir")
ANCHORED = tuple(representation.METHODS)  # need known-bad rows
OVER_STATES = (*ANCHORED, "subspace", "pu_probe")


class Scored(NamedTuple):
    """A method's columns, float64 [N] each; what its passes cost, whoever asked for them first.

    Attributes:
        forward_equivalents: forward passes a row.
        seconds, cpu_seconds: of all its passes.
        evidence: "moved", mean loss of held-out rows before and after each tuning; "steps",
            the optimizer's in each; "reliability", from the even and the odd tokens or from two
            halves of the anchors ("halves"), None where a score has neither; "anchors", see
            `seal.selection.representation.judged`; "safe_above_rows", AUROC of held-out safe rows
            against the rows of `pu_probe`.
        head: what scores rows that are not here, see `Head.to_meta`; None where a score has none.
    """

    columns: Columns
    forward_equivalents: float
    seconds: float
    cpu_seconds: float
    evidence: dict
    head: dict | None


def check_method(method: str) -> None:
    """Raises InputError for a method that is not known."""
    if method not in METHODS:
        raise InputError(f"--method {method}: {known(method, METHODS)}")


def score_rows(passes: Passes, method: str, smooth: bool = False) -> Scored:
    """Scores the rows by one method of METHODS.

    Args:
        smooth: give what the rows' hidden states predict of the score.

    Raises:
        InputError: unknown method, or a pass that cannot be run.
    """
    check_method(method)
    passes.used.clear()
    passes.evidence, passes.head = {}, None
    columns = _columns(passes, method, smooth)
    head = passes.head
    notes = {name: done.note for name, done in passes.used.items()}
    worth = None if method in MODEL_FREE else _halved(passes, method, smooth)
    moved = {name: note["moved"] for name, note in notes.items() if note["moved"]}
    spent = [
        sum(note[key] for note in notes.values()) for key in ("cost", "seconds", "cpu_seconds")
    ]
    steps = {name: note["steps"] for name, note in notes.items() if "steps" in note}
    evidence = {"moved": moved, "steps": steps, "reliability": worth} | passes.evidence
    return Scored(columns, *spent, evidence, head)


def _columns(passes: Passes, method: str, smooth: bool) -> Columns:
    columns = METHODS[method](passes)
    if smooth:
        judged = passes.evidence.get("anchors")
        layer = judged["layer"] if judged else representation.middle(passes.layers)
        features = passes.states(layer).features
        groups = folds_of(passes.rows.ids, representation.FOLDS)
        columns["score"], head = representation.smooth(columns["score"], features, groups)
        passes.head = head.to_meta(layer)
    return columns


def _halved(passes: Passes, method: str, smooth: bool) -> float | None:
    scores = []
    for passes.half in (0, 1):
        scores.append(_columns(passes, method, smooth)["score"])
    passes.half = None
    return reliability_of_rows(*scores)


def reliability_of_rows(even: np.ndarray, odd: np.ndarray) -> float | None:
    """`seal.statistics.reliability` of [N] and [N], over the rows that have both halves."""
    both = np.isfinite(even) & np.isfinite(odd)
    return reliability(even[both], odd[both]) if both.sum() > 2 else None
