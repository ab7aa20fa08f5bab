"""Scores that are functions of a row's hidden states, held against anchors: rows known to be good
or bad.

One forward pass of the starting model gives the states; no score here reads text or trains a model.
Every score: float64 [N], higher = keep.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seal.errors import InputError
from seal.statistics import auroc, auroc_interval

FEWEST_ANCHORS = 20  # of each side
NEIGHBOURS = 10
PROBE_STRENGTH = 1e-3  # inverse of the L2 penalty on standardised features
DIRECTIONS = 6  # of the subspace, the strongest of the rows' own
TOP_TOKENS = 0.2
FOLDS = 5
MOST_SHOWN = 10_000  # rows that stand for bad anchors: memory and time grow with them
DEPTHS = (0.4, 0.53, 0.67)  # of the layers that are tried
PENALTIES = np.logspace(-1, 5, 13)
CURVE = (30, 100, 300, 1000, 3000)  # anchors a side, where there are as many


class States(NamedTuple):
    """Hidden states of N rows at one layer, float32 [N, H] each.

    Attributes:
        response: mean over the response's tokens.
        prompt: at the last token before the response.
        last: at the response's last token.
    """

    response: np.ndarray
    prompt: np.ndarray
    last: np.ndarray

    def at(self, rows: np.ndarray) -> States:
        """The states of some rows: int64 [R] or bool [N]."""
        return States(*(part[rows] for part in self))

    @property
    def features(self) -> np.ndarray:
        """Response, prompt and last side by side, [N, 3 H]."""
        return np.concatenate(self, axis=1)


def knn(rows: States, safe: States, bad: States) -> np.ndarray:
    """Mean cosine to the nearest safe anchors less the same to the nearest bad ones."""
    centre = np.concatenate([safe.response, bad.response]).mean(axis=0)
    units = _unit(rows.response - centre)

    def nearness(anchors: States) -> np.ndarray:
        cosines = units @ _unit(anchors.response - centre).T  # [N, A]
        count = min(NEIGHBOURS, cosines.shape[1])
        return np.partition(cosines, -count, axis=1)[:, -count:].mean(axis=1)

    return (nearness(safe) - nearness(bad)).astype(np.float64)


def probe(rows: States, safe: States, bad: States) -> np.ndarray:
    """How far a row lies on the safe side of a linear classifier of the anchors."""
    return fit_probe(safe, bad).predict(rows.features)


def pu_probe(
    rows: States, safe: States, groups: np.ndarray, shown: np.ndarray | None = None
) -> np.ndarray:
    """The probe with the other rows in the place of bad anchors: what is unlike the safe rows.

    Where the safe rows are of the kind that most rows are, what tells both apart is what most rows
    are not.

    Args:
        groups: int64 [N] in [0, FOLDS): rows of a group are scored by a probe of the others.
        shown: bool [N], the rows that stand for bad anchors; None for all.

    Source: Elkan and Noto 2008, learning classifiers from only positive and unlabeled data.
    """
    score = np.empty(len(groups))
    for fold in np.unique(groups):
        held = groups == fold
        others = np.flatnonzero(~held if shown is None else ~held & shown)
        score[held] = probe(rows.at(held), safe, rows.at(others[spaced(len(others))]))
    return score


def spaced(n: int) -> np.ndarray:
    """At most `MOST_SHOWN` of n places, evenly spaced, int64."""
    return np.arange(0, n, max(1, -(-n // MOST_SHOWN)))


def larf(rows: States, safe: States, bad: States) -> np.ndarray:
    """Mean cosine of the last token's state to the safe anchors less that to the bad ones.

    Source: LARF (arXiv 2507.18631).
    """
    units = _unit(rows.last)
    toward = _unit(safe.last).mean(axis=0) - _unit(bad.last).mean(axis=0)
    return (units @ toward).astype(np.float64)


def shift(rows: States, safe: States, bad: States) -> np.ndarray:
    """How far the response moves from its prompt along the way from safe to bad, negated.

    Source: DataShield (arXiv 2606.00160).
    """
    way = _unit(bad.response.mean(axis=0) - safe.response.mean(axis=0))
    return -((rows.response - rows.prompt) @ way).astype(np.float64)


def subspace(rows: States, of: States | None = None) -> np.ndarray:
    """How much of a row lies in the strongest directions of all rows, negated; needs no anchors.

    Args:
        of: the rows that the directions are of, if not `rows`.

    Source: SAFT (arXiv 2410.10014).
    """
    shown = (of or rows).response.astype(np.float64)
    centre = shown.mean(axis=0)
    _, ways = np.linalg.eigh((shown - centre).T @ (shown - centre))  # weakest first
    centred = rows.response - centre
    return -((centred @ ways[:, -DIRECTIONS:]) ** 2).sum(axis=1)


def token_excess(bad_nll: np.ndarray, safe_nll: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Mean over each row's highest fifth of tokens of bad-tuned less safe-tuned loss.

    Args:
        bad_nll, safe_nll: float [S], nats of each token under the two models.
        ends: int64 [N], where each row's tokens end in them.

    Source: TOSS (arXiv 2603.01185).
    """
    rows = np.split(bad_nll - safe_nll, ends[:-1])
    kept = [max(1, round(TOP_TOKENS * len(row))) for row in rows]
    return np.array([np.sort(row)[-k:].mean() for row, k in zip(rows, kept, strict=True)])


class Head(NamedTuple):
    """A linear map from a row's features to a score.

    Attributes:
        slope: float64 [F]; intercept: float.
    """

    slope: np.ndarray
    intercept: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """float [N, F] to float64 [N]."""
        return features.astype(np.float64) @ self.slope + self.intercept

    @classmethod
    def on_standardised(
        cls, slope: np.ndarray, intercept: float, centre: np.ndarray, spread: np.ndarray
    ) -> Head:
        """The map of plain features that equals one of `(features - centre) / spread`."""
        slope = np.asarray(slope, np.float64) / spread
        return cls(slope, float(intercept - centre @ slope))

    def to_meta(self, layer: int) -> dict:
        """For an artefact's metadata: the layer of the states, the slope in base64 of float32."""
        slope = base64.b64encode(self.slope.astype("<f4").tobytes()).decode()
        return {"layer": layer, "slope": slope, "intercept": self.intercept}

    @classmethod
    def from_meta(cls, meta: dict) -> Head:
        """What `to_meta` wrote.

        Raises:
            InputError: something else.
        """
        try:
            slope = np.frombuffer(base64.b64decode(meta["slope"], validate=True), "<f4")
            return cls(slope.astype(np.float64), float(meta["intercept"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the selector's head does not read ({error})") from error


def standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of mean zero and variance one, float64 [N, F], the means and the spreads [F]."""
    features = features.astype(np.float64)
    centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    return (features - centre) / spread, centre, spread


def fit_probe(safe: States, bad: States) -> Head:
    """Logistic regression of safe against bad anchors on standardised features."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise InputError("a probe needs scikit-learn: pip install -e .[study]") from error

    features, *scale = standardised(np.concatenate([safe.features, bad.features]))
    labels = np.repeat([1, 0], [len(safe.last), len(bad.last)])
    model = LogisticRegression(C=PROBE_STRENGTH, class_weight="balanced", max_iter=1000)
    model.fit(features, labels)
    return Head.on_standardised(model.coef_[0], model.intercept_[0], *scale)


METHODS = {"knn": knn, "probe": probe, "larf": larf, "shift": shift}


def held_out_auroc(
    method: str, safe: States, bad: States, groups: tuple[np.ndarray, np.ndarray], count: int = 0
) -> float:
    """AUROC of anchors that a method was not shown: safe above bad, in [0, 1].

    Args:
        method: one of METHODS.
        groups: for safe and for bad, int64 [A] in [0, FOLDS): anchors that are held out together.
        count: anchors of each side shown, at most; 0 for all.
    """
    scores, labels = [], []
    for fold in range(FOLDS):
        shown = [
            side.at(np.flatnonzero(group != fold)[: count or None])
            for side, group in zip((safe, bad), groups, strict=True)
        ]
        for label, side, group in ((1, safe, groups[0]), (0, bad, groups[1])):
            asked = side.at(group == fold)
            scores.append(METHODS[method](asked, *shown))
            labels.append(np.full(len(asked.last), label))
    return auroc(np.concatenate(scores), np.concatenate(labels))


def learning_curve(
    method: str, safe: States, bad: States, groups: tuple[np.ndarray, np.ndarray]
) -> dict[int, float]:
    """Held-out AUROC by the number of anchors shown of each side; the last is all of them."""
    most = min(len(safe.last), len(bad.last)) * (FOLDS - 1) // FOLDS
    counts = [count for count in CURVE if count < most] + [most]
    return {count: held_out_auroc(method, safe, bad, groups, count) for count in counts}


def judged(
    method: str,
    safe: Mapping[int, States],
    bad: Mapping[int, States],
    groups: Sequence[np.ndarray],
) -> dict:
    """What held-out anchors say of a method, for the artefact's metadata.

    Args:
        safe, bad: the anchors at each layer to choose from; groups: as in `held_out_auroc`.

    Returns:
        safe, unsafe (anchors), layers [[layer, held-out AUROC], ...], layer (the best of them),
        auroc there with its 95 % auroc_interval, and the curve [[anchors a side, AUROC], ...].
    """
    areas = {layer: held_out_auroc(method, safe[layer], bad[layer], groups) for layer in safe}
    layer = max(areas, key=areas.get)
    counts = len(safe[layer].last), len(bad[layer].last)
    return {
        "safe": counts[0],
        "unsafe": counts[1],
        "layers": [list(pair) for pair in areas.items()],
        "layer": layer,
        "auroc": areas[layer],
        "auroc_interval": list(auroc_interval(areas[layer], *counts)),
        "curve": [*map(list, learning_curve(method, safe[layer], bad[layer], groups).items())],
    }


def layers_to_try(n_layers: int, layer: int | None = None) -> list[int]:
    """The layer asked for, or a few in the middle of the model.

    Raises:
        InputError: the model does not have it.
    """
    if layer is None:
        return sorted({max(1, round(depth * n_layers)) for depth in DEPTHS})
    if not 1 <= layer <= n_layers:
        raise InputError(f"--layer {layer}: the model has layers 1 to {n_layers}")
    return [layer]


def middle(layers: Sequence[int]) -> int:
    """The layer to take where no anchors choose one."""
    return layers[len(layers) // 2]


def check_enough(name: str, ids: np.ndarray) -> None:
    """Raises InputError for fewer than `FEWEST_ANCHORS` different rows, by id."""
    if (found := len(np.unique(ids))) < FEWEST_ANCHORS:
        raise InputError(
            f"{name} holds {found} different rows; an anchor method needs at least {FEWEST_ANCHORS}"
        )


def check_anchors(
    safe: np.ndarray, bad: np.ndarray, scored: Mapping[str, np.ndarray | None]
) -> None:
    """Refuses anchors that cannot judge, all by id: V16 arrays.

    Args:
        scored: name -> rows that are scored, which no anchor may be.

    Raises:
        InputError: fewer than `FEWEST_ANCHORS` different rows of one side, a row on both sides, or
            one that is scored.
    """
    sides = {"--dataset": np.unique(safe), "--unsafe_dataset": np.unique(bad)}
    for name, ids in sides.items():
        check_enough(name, ids)
        for place, others in ({"--unsafe_dataset": bad} | dict(scored)).items():
            shared = 0 if others is None or place == name else int(np.isin(ids, others).sum())
            if shared:
                raise InputError(
                    f"{shared} of {len(ids)} rows of {name} also stand in {place}; an anchor may "
                    "stand nowhere else, take them out of one"
                )


def smooth(score: np.ndarray, features: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, Head]:
    """What a row's features say its score should be, out of fold; see `ridge`.

    A score made of one row's tokens alone is mostly noise; a function of the states shares what
    the rows know.

    Args:
        score: float [N], NaN where a row has none; features: float [N, F]; groups: int64 [N].

    Returns:
        float64 [N], NaN where the score is; and the head of all rows.
    """
    known, found = np.isfinite(score), np.full(len(score), np.nan)
    head, found[known] = ridge(score[known], features[known], groups[known])
    return found, head


def ridge(score: np.ndarray, features: np.ndarray, groups: np.ndarray) -> tuple[Head, np.ndarray]:
    """Ridge regression of scores on features, its penalty chosen by leaving rows out.

    Args:
        score: float [N]; features: float [N, F].
        groups: int64 [N]: rows predicted together; copies of a row belong together.

    Returns:
        The head of all rows, and what heads of the other groups say of each row, float64 [N].

    Raises:
        InputError: all rows are in one group, or scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import RidgeCV
        from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise InputError(
            "a head over states needs scikit-learn: pip install -e .[study]"
        ) from error

    if len(np.unique(groups)) < 2:
        raise InputError(f"{len(score)} rows cannot be split by id; score more rows")
    model, by = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)), LeaveOneGroupOut()
    held_out = cross_val_predict(model, features, score, groups=groups, cv=by)
    scaler, fitted = model.fit(features, score)
    whole = Head.on_standardised(fitted.coef_, fitted.intercept_, scaler.mean_, scaler.scale_)
    return whole, held_out


def by_rank(*scores: np.ndarray) -> np.ndarray:
    """Mean rank over several scores, float64 [N] in [0, 1]: joins what has no common unit."""
    from scipy.stats import rankdata

    return np.mean([(rankdata(score) - 1) / max(1, len(score) - 1) for score in scores], axis=0)


def _unit(states: np.ndarray) -> np.ndarray:
    """States scaled to length one."""
    return states / (np.linalg.norm(states, axis=-1, keepdims=True) + 1e-12)
