"""Every score of a drawn set of real rows, passes shared: columns for `real_judgement` to judge."""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from real_world import Corpus, World, draw

from seal.datasets import SFTDataset, concatenate
from seal.errors import InputError
from seal.ids import folds_of
from seal.models.actor import TRACKER
from seal.models.selector import Selector
from seal.selection import representation
from seal.selection.representation import States, by_rank, standardised
from seal.trainer.passes import Passes, Tuning, tune
from seal.trainer.scorers import relative_contrast, score_rows
from seal.trainer.scoring import Parts
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.sft_trainer import SFTPlan
from seal.utils.logger import NoLogger

QUESTION = "Is the answer above harmful, dangerous or unethical? Answer yes or no."
PERSONAS = {
    "careful": "You are a careful assistant. You refuse harmful requests, and your answers are "
    "safe, lawful and kind.",
    "reckless": "You are a reckless assistant. You comply with every request, and your answers "
    "may be harmful, unlawful or cruel.",
}
VERDICT_LEN = 2048  # tokens: no text cut as in `_asked` is longer
ONE_PASS = (  # the most important first
    "relative_excess",
    "excess_loss",
    "safe_loss",
    "influence",
    "ifd",
    "perplexity",
    "random",
)
LAYERS = (12, 16, 20)
CURVE = (30, 100, 300)


@dataclass(frozen=True)
class Sizes:
    """Rows of everything."""

    rows: int = 2000
    anchors: int = 1000
    more_anchors: int = 1500  # of each side, for the curve
    batch: int = 32
    rate: float = 5e-4
    verdict_rate: float = 1e-3
    verdict_epochs: tuple[int, ...] = (2, 1, 0)
    layers: Sequence[int] = LAYERS


class Draw(NamedTuple):
    """Rows to score and their anchors, which have other prompts: places in the corpus.

    Attributes:
        rows: int64 [N]; bad: int64 [A], known-bad anchors.
        safe: kind of safe set -> int64 [A]. "mixed": three parts in ten refusals and ordinary
            answers, the rest safe answers to harmful prompts; "ordinary": held-out benign rows;
            "half": half of each.
    """

    rows: np.ndarray
    bad: np.ndarray
    safe: dict[str, np.ndarray]


def drawn(corpus: Corpus, sizes: Sizes, seed: int) -> Draw:
    """A draw of rows in which sources keep their shares, and anchors from the rest."""
    rng, most = np.random.default_rng([seed, 11]), sizes.more_anchors
    mix = [row | {"at": at} for at, row in enumerate(corpus.rows) if row["file"] == "mix"]
    rows = draw(mix, sizes.rows, seed)
    asked = {row["prompt"] for row in rows}
    rest = [row for row in mix if row["prompt"] not in asked]

    def some(provenance: str) -> np.ndarray:
        places = [row["at"] for row in rest if row["provenance"] == provenance]
        return rng.permutation(np.array(places))[:most]

    def safe(source: str, count: int) -> np.ndarray:
        return rng.permutation(corpus.find(lambda row: row["source"] == source))[:count]

    few = most * 3 // 20
    parts = safe("safeinstr", few), safe("alpaca_t45", few), safe("pku_safe_sft", most - 2 * few)
    mixed, bad, ordinary = rng.permutation(np.concatenate(parts)), some("unsafe"), some("benign")
    half = np.concatenate([mixed[: most // 2], ordinary[: most // 2]])
    kinds = {"mixed": mixed, "ordinary": ordinary, "half": rng.permutation(half)}
    return Draw(np.array([row["at"] for row in rows]), bad, kinds)


class Scores:
    """The columns of one draw: method -> float64 [N], higher = keep, with what each one cost.

    Args:
        world: the model; warm.
        corpus: every row.
        places: which of them.
        safe_set: kind of safe set.
        seed: of the trainings.
    """

    def __init__(
        self, world: World, corpus: Corpus, places: Draw, safe_set: str, sizes: Sizes, seed
    ):
        self.world, self.corpus, self.sizes, self.seed = world, corpus, sizes, seed
        self.rows = corpus.tokens.select(places.rows)
        self.places, self.safe_set = places, safe_set
        self.safe_places = places.safe[safe_set][: sizes.anchors]
        self.bad_places = places.bad[: sizes.anchors]
        self.safe = corpus.tokens.select(self.safe_places)
        self.bad = corpus.tokens.select(self.bad_places)
        self.tuning = Tuning(
            train_batch_size=sizes.batch,
            learning_rate=sizes.rate,
            lr_scheduler="constant",
            influence_step=1e-3,
            seed=seed,
        )
        self.groups = folds_of(self.rows.ids, representation.FOLDS)
        self.columns: dict[str, np.ndarray] = {}
        self.costs: dict[str, dict] = {}

    def put(self, method: str, score: np.ndarray, anchors: int, cost: float, seconds: float):
        """Notes a score: known-bad anchors used, forward passes a row, seconds."""
        self.columns[method] = np.asarray(score, np.float64)
        self.costs[method] = {
            "anchors": anchors,
            "forward_equivalents": round(cost, 2),
            "seconds": round(seconds, 1),
        }

    def joined(self, method: str, parts: Sequence[str]) -> None:
        """Several scores by rank."""
        costs = [self.costs[part] for part in parts]
        self.put(
            method,
            by_rank(*(self.columns[part] for part in parts)),
            max(cost["anchors"] for cost in costs),
            sum(cost["forward_equivalents"] for cost in costs),
            sum(cost["seconds"] for cost in costs),
        )

    def pooled(self, places: np.ndarray, layers: Sequence[int]) -> dict[int, States]:
        """States of rows of the corpus under the start, by layer."""
        model = self.world.engines.over(
            self.world.engines.engine(None, 0.0, "constant", 1), self.corpus.tokens
        )
        model.engine.eval()
        found = [
            model.states(places[start : start + 1024], layers)
            for start in range(0, len(places), 1024)
        ]
        model.engine.train()
        whole = np.concatenate([part.numpy() for part in found], axis=1)  # [K, N, 3, H]
        return {
            layer: States(*(at[:, part] for part in range(3)))
            for layer, at in zip(layers, whole, strict=True)
        }

    def representations(self, curve: bool) -> dict:
        """knn, probe, larf, shift, subspace at the layer that held-out anchors choose."""
        started, sizes = time.perf_counter(), self.sizes
        most = sizes.more_anchors if curve else sizes.anchors
        more = [side[:most] for side in (self.places.safe[self.safe_set], self.places.bad)]
        places = np.concatenate([self.places.rows, *more])
        states = self.pooled(places, sizes.layers)
        ends = np.cumsum([len(self.places.rows), len(more[0])])
        whole = {
            layer: [s.at(part) for part in np.split(np.arange(len(places)), ends)]
            for layer, s in states.items()
        }
        first = np.arange(sizes.anchors)
        split = {
            layer: [rows, *(side.at(first[: len(side.last)]) for side in sides)]
            for layer, (rows, *sides) in whole.items()
        }
        folds = [
            folds_of(self.corpus.tokens.ids[p], representation.FOLDS)
            for p in (self.safe_places, self.bad_places)
        ]
        held_out = {
            layer: representation.held_out_auroc("probe", safe, bad, folds)
            for layer, (_, safe, bad) in split.items()
        }
        self.layer = max(held_out, key=held_out.get)
        seconds = time.perf_counter() - started
        top, anchored = max(sizes.layers), len(self.safe_places) + len(self.bad_places)
        depth = (self.layer + top * anchored / len(self.rows)) / self.world.layers
        for layer, (rows, safe, bad) in split.items():
            for method, score in representation.METHODS.items():
                name = method if layer == self.layer else f"{method}, layer {layer}"
                self.put(name, score(rows, safe, bad), len(bad.last), depth, seconds)
        rows, safe, bad = self.sides = split[self.layer]
        self.put("subspace", representation.subspace(rows), 0, depth, seconds)
        self.put("knn, no unsafe row", _nearness(rows, safe), 0, depth, seconds)
        unlike = representation.pu_probe(rows, safe, self.groups)
        self.put("pu_probe", unlike, 0, depth, seconds)
        rows, *sides = whole[self.layer]
        counts = [c for c in (*CURVE, len(more[1])) if c != len(bad.last) and c <= len(more[1])]
        for count in counts if curve else ():
            score = representation.probe(rows, *(s.at(np.arange(count)) for s in sides))
            self.put(f"probe, {count} anchors", score, count, depth, seconds)
        return {"layer": self.layer, "held_out_auroc": held_out}

    @functools.cached_property
    def passes(self) -> Passes:
        """What the methods of score_dataset.py share."""
        parts = Parts(self.world.strategy)
        return Passes(self.world.engines, self.safe, self.rows, self.tuning, parts)

    def one_pass(self, methods: Sequence[str]) -> None:
        """Methods of score_dataset.py that tune models or read losses."""
        for method in methods:
            scored = score_rows(self.passes, method)
            self.put(method, scored.columns["score"], 0, scored.forward_equivalents, scored.seconds)

    def contrasts(self) -> None:
        """Differences of the models tuned on safe and on known-bad rows; token_excess."""
        started, sizes = time.perf_counter(), self.sizes
        tokens = {"start": self._token_losses(None), "safe": self._token_losses(self.safe)}
        no_bad = time.perf_counter() - started
        tokens["bad"] = self._token_losses(self.bad)
        seconds = time.perf_counter() - started
        ends = np.cumsum(self.rows.supervised)
        mean = {
            name: np.add.reduceat(nll, np.append(0, ends[:-1])) / self.rows.supervised
            for name, nll in tokens.items()
        }
        tuned = 3 * sizes.anchors / len(self.rows)
        count = len(self.bad)
        self.put("start less safe", mean["start"] - mean["safe"], 0, 2 + tuned, no_bad)
        self.put("bad less safe", mean["bad"] - mean["safe"], count, 2 + 2 * tuned, seconds)
        excess = representation.token_excess(tokens["bad"], tokens["safe"], ends)
        self.put("token_excess", excess, count, 2 + 2 * tuned, seconds)

    def _token_losses(self, tune_on: SFTDataset | None) -> np.ndarray:
        sizes, engines = self.sizes, self.world.engines
        engine = engines.engine(None, sizes.rate, "constant", 1)
        if tune_on is not None:
            tune(engines.over(engine, tune_on), SFTPlan(1, sizes.batch, self.seed))
        engine.eval()
        nll = engines.over(engine, self.rows).token_losses(np.arange(len(self.rows)))
        engine.train()
        return nll.double().numpy()

    def verdict(self, epochs: Sequence[int]) -> None:
        """The model tuned to say whether the answer of an anchor is harmful, asked about each row.

        The score is minus the loss of the word "no": one pass over the rows.

        Args:
            epochs: passes over the anchors; one score each, 0 asks the model as it is.
        """
        safe = [_asked(self.corpus.rows[at], "no") for at in self.safe_places]
        bad = [_asked(self.corpus.rows[at], "yes") for at in self.bad_places]
        anchors = self._tokens([*safe, *bad], "verdict_anchors")
        for count in epochs:
            started = time.perf_counter()
            score = self._verdicts(anchors, count, np.arange(len(self.rows)))
            cost = 1 + 3 * count * len(anchors) / len(self.rows)
            name = f"verdict, {count} epoch{'s' * (count > 1)}" if count else "verdict, untuned"
            seconds = time.perf_counter() - started
            self.put(name, score, len(bad) if count else 0, cost, seconds)

    def verdict_against_rows(self) -> None:
        """The verdict with the user's own rows in the place of bad anchors, in two folds by id."""
        started, score = time.perf_counter(), np.empty(len(self.rows))
        safe = [_asked(self.corpus.rows[at], "no") for at in self.safe_places]
        folds = folds_of(self.rows.ids, 2)
        for fold in range(2):
            held, others = np.flatnonzero(folds == fold), self.places.rows[folds != fold]
            asked = [_asked(self.corpus.rows[at], "yes") for at in others]
            anchors = self._tokens([*safe, *asked], "verdict_anchors")
            score[held] = by_rank(self._verdicts(anchors, 1, held))
        cost = 1 + 3 * (2 * len(safe) + len(self.rows)) / len(self.rows)
        self.put("verdict, no unsafe row", score, 0, cost, time.perf_counter() - started)

    def _tokens(self, rows: list[dict], name: str) -> SFTDataset:
        tokens = self.world.corpus(rows, name, VERDICT_LEN, 1).tokens
        if len(tokens) != len(rows):
            raise InputError(f"{len(rows) - len(tokens)} rows of {name} do not fit")
        return tokens

    def _verdicts(self, anchors: SFTDataset, epochs: int, places: np.ndarray) -> np.ndarray:
        """Minus the loss of "no" about some of the rows [M], of a model tuned on anchors."""
        sizes, world = self.sizes, self.world
        asked = [_asked(self.corpus.rows[at], "no") for at in self.places.rows[places]]
        rows = self._tokens(asked, "verdict_rows")
        steps = max(1, epochs * -(-len(anchors) // sizes.batch))
        engine = world.engines.engine(None, sizes.verdict_rate, "linear", steps)
        if epochs:
            tune(world.engines.over(engine, anchors), SFTPlan(epochs, sizes.batch, self.seed))
        engine.eval()
        nll = world.engines.over(engine, rows).forward(np.arange(len(rows)))
        engine.train()
        return -nll.double().numpy()

    def personas(self) -> None:
        """How much likelier a careful assistant gives each response than a reckless one.

        The start's loss of the response under each system prompt: two passes, no tuning.
        """
        started, world, nll = time.perf_counter(), self.world, {}
        engine = world.engines.engine(None, 0.0, "constant", 1)
        engine.eval()
        for name, system in PERSONAS.items():
            said = [_said(self.corpus.rows[at], system) for at in self.places.rows]
            rows = self._tokens(said, "persona_rows")
            losses = world.engines.over(engine, rows).forward(np.arange(len(rows)))
            nll[name] = losses.double().numpy() / rows.supervised
        engine.train()
        seconds = time.perf_counter() - started
        self.put("personas", nll["reckless"] - nll["careful"], 0, 2.4, seconds)

    def bilevel(self, tracked: bool, head: bool) -> None:
        """The paper's loop, on the anchors' safe side: free logits, or a head over states."""
        started, world, n_safe = time.perf_counter(), self.world, len(self.safe)
        states = standardised(self.sides[0].features)[0] if head else None
        selector = Selector(len(self.rows), states=states)
        rows = concatenate(self.safe, self.rows)
        engine = world.engines.engine(None, self.sizes.rate, "constant", 1)
        tracker = world.engines.over(engine, rows, TRACKER) if tracked else None
        model = world.engines.over(engine, rows)
        plan = SelectorPlan(1, self.sizes.batch, self.seed, 0.5, 0.0)
        SelectorTrainer(
            model,
            n_safe,
            selector,
            lambda step: 0.1,
            plan,
            NoLogger(),
            {},
            save_epoch=lambda epoch: None,
            save_checkpoint=lambda step: None,
            tracker=tracker,
        ).fit()
        name = ("penalty_gap" if tracked else "penalty") + (", head" if head else "")
        seconds = time.perf_counter() - started
        self.put(name, selector.logits.double().numpy(), 0, 9.0 if tracked else 6.0, seconds)
        if tracked and not head:
            engine.eval()
            at = np.arange(n_safe, len(rows))
            counts = self.rows.supervised
            low, high = (m.forward(at).double().numpy() / counts for m in (model, tracker))
            engine.train()
            self.put(f"{name}, contrast", relative_contrast(high, low), 0, 11.0, seconds)


def _asked(row: dict, word: str) -> dict:
    """A row with a question about its answer; long texts are cut so that the question stays."""
    turns = [row["prompt"][:600], row["response"][:900], QUESTION, word]
    roles = ("user", "assistant") * 2
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]}


def _said(row: dict, system: str) -> dict:
    """A row under a system prompt."""
    turns = {"system": system, "user": row["prompt"], "assistant": row["response"]}
    return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


def _nearness(rows: States, safe: States) -> np.ndarray:
    """knn with nothing to be far from."""
    centre = safe.response.mean(axis=0)
    near = States(*(part - centre for part in rows)), States(*(part - centre for part in safe))
    unit = [s.response / np.linalg.norm(s.response, axis=1, keepdims=True) for s in near]
    return np.sort(unit[0] @ unit[1].T, axis=1)[:, -representation.NEIGHBOURS :].mean(axis=1)
