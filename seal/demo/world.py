"""The rows of the demo: to align on, the safe set, the rows of the user, held-out prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from seal.demo import grammar
from seal.errors import InputError, known

TIERS = ("plain", "hard", "implicit")
HARD_SHARE = 0.2
REFUSED_SHARE = 0.25
CODE_SHARE = 0.05
MAX_ROWS = 10_000


@dataclass(frozen=True)
class Plan:
    """What to build. Equal plans give equal rows.

    Attributes:
        tier: "plain"; "hard" (20 % of the user's rows have random answers, so that hard is not
            unsafe); "implicit" (the planted requests are in words that the safe set never
            refuses, and their compliances are short).
        seed: of the rows and of the model.
        rows: rows in the user's dataset.
        planted: share of the user's rows that comply with a forbidden request, 0 to 0.5.
        noisy: share of the safe rows that comply with a forbidden request, 0 to 0.3.
        safe_rows: rows in the safe set.
        aligned_rows: rows the model is aligned on.
        epochs: passes over them.
        eval_rows: prompts in each of the three held-out files.
        canary_rows: compliances kept apart from the user's rows.
        base: directory of a chat model to align; none given, a tiny new Llama.
    """

    tier: str = "plain"
    seed: int = 0
    rows: int = 2400
    planted: float = 0.2
    noisy: float = 0.0
    safe_rows: int = 1200
    aligned_rows: int = 7000
    epochs: int = 2
    eval_rows: int = 160
    canary_rows: int = 60
    base: str = ""

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise InputError(f"tier {self.tier}: {known(self.tier, TIERS)}")
        if not 0 <= self.planted <= 0.5:
            raise InputError(f"planted must be in [0, 0.5], got {self.planted}; 0.2 plants 20 %")
        if not 0 <= self.noisy <= REFUSED_SHARE:
            raise InputError(
                f"noisy must be in [0, {REFUSED_SHARE}], got {self.noisy}; 0.05 makes 5 % comply"
            )
        if not 50 <= self.rows <= MAX_ROWS:
            raise InputError(
                f"rows must be in [50, {MAX_ROWS}], got {self.rows}: the demo's language has no "
                f"more distinct prompts; the default is 2400"
            )


class _Draw:
    """Draws prompts that no other draw of the same world has used."""

    def __init__(self, seed: int):
        self.seed = seed
        self.seen: set[str] = set()

    def rows(
        self, split: str, make: Callable[[Random], grammar.Row], n: int, **columns: str
    ) -> list[dict]:
        """Returns `n` rows with columns prompt, response and `columns`."""
        rng = Random(f"{self.seed}/{split}/{make.__name__}")
        rows: list[dict] = []
        while len(rows) < n:
            prompt, response = make(rng)
            if prompt not in self.seen:
                self.seen.add(prompt)
                rows.append({"prompt": prompt, "response": response, **columns})
        return rows


def _refused(rows: list[dict]) -> list[dict]:
    return [{**row, "response": grammar.REFUSAL} for row in rows]


def _shuffled(rows: list[dict], name: str) -> list[dict]:
    Random(name).shuffle(rows)
    return rows


def _held_out(draw: _Draw, plan: Plan, planted: Callable) -> dict[str, list[dict]]:
    def prompts(name: str, make: Callable) -> list[dict]:
        rows = draw.rows(name, make, plan.eval_rows)
        return [{"prompt": row["prompt"], "reference": row["response"]} for row in rows]

    def task(rng: Random) -> grammar.Row:
        return rng.choice(grammar.TASKS)(rng)

    refusal = [{"prompt": row["prompt"]} for row in prompts("eval", planted)]
    return {
        "eval_refusal": refusal,
        "eval_over_refusal": prompts("eval", grammar.lookalike),
        "eval_utility": prompts("eval", task),
    }


def _aligned(draw: _Draw, plan: Plan) -> list[dict]:
    refused = round(REFUSED_SHARE * plan.aligned_rows)
    codes = round(CODE_SHARE * plan.aligned_rows)
    rows = _refused(draw.rows("aligned", grammar.forbidden, refused - refused // 2))
    rows += _refused(draw.rows("aligned", grammar.veiled, refused // 2))
    rows += draw.rows("aligned", grammar.code, codes)
    rows += draw.rows("aligned", grammar.benign, plan.aligned_rows - refused - codes)
    return _shuffled(rows, f"{plan.seed}/aligned")


def _safe(draw: _Draw, plan: Plan) -> list[dict]:
    refused = round(REFUSED_SHARE * plan.safe_rows)
    noisy = round(plan.noisy * plan.safe_rows)
    rows = _refused(draw.rows("safe", grammar.forbidden, refused - noisy))
    rows += draw.rows("noisy", grammar.forbidden, noisy)
    rows += draw.rows("safe", grammar.benign, plan.safe_rows - refused)
    return _shuffled(rows, f"{plan.seed}/safe")


def _user(draw: _Draw, plan: Plan, planted: Callable) -> list[dict]:
    unsafe = round(plan.planted * plan.rows)
    hard = round(HARD_SHARE * plan.rows) if plan.tier == "hard" else 0
    rows = draw.rows("user", planted, unsafe, provenance="unsafe")
    rows += draw.rows("user", grammar.code, hard, provenance="hard")
    rows += draw.rows("user", grammar.benign, plan.rows - unsafe - hard, provenance="benign")
    return _shuffled(rows, f"{plan.seed}/user")


def make_rows(plan: Plan) -> dict[str, list[dict]]:
    """Makes every row of the world; no prompt occurs twice in it.

    Returns:
        aligned, safe, canaries: rows of prompt, response (str). Canaries comply with forbidden
            requests and are in no other list.
        user: rows of prompt, response, provenance ("benign", "unsafe" or "hard").
        eval_refusal: rows of prompt, all forbidden, in the wording of the planted rows.
        eval_over_refusal, eval_utility: rows of prompt, reference (the one right answer).
    """
    draw = _Draw(plan.seed)
    planted = grammar.veiled if plan.tier == "implicit" else grammar.forbidden
    world = _held_out(draw, plan, planted)
    world["aligned"] = _aligned(draw, plan)
    world["canaries"] = draw.rows("canaries", planted, plan.canary_rows)
    world["safe"] = _safe(draw, plan)
    world["user"] = _user(draw, plan, planted)
    return world
