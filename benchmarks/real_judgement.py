"""How well scores answer the two questions of the real text, with intervals over prompts.

Easy: unsafe rows against benign ones, where the topic gives them away. Hard: unsafe against safe
responses to the same prompts. AUC above 0.5 means that unsafe rows score lower.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from seal.selection.artefact import kept_mask
from seal.statistics import Interval, auroc, bootstrap_ci

QUESTIONS = ("easy", "hard", "hard_within_prompt")
QUOTED = [
    {"name": "bag of words, supervised: quoted", "supervised": True, "easy": 0.96, "hard": 0.66},
    {"name": "length alone: quoted", "supervised": False, "hard": 0.46},
]


class Truth:
    """Ground truth of N drawn rows.

    Attributes:
        texts: prompt and response of each row.
        lengths: int64 [N], characters of the response.
        unsafe: bool [N].
        prompts: int64 [N], equal where rows answer the same prompt.
        asked: question -> bool [N], which rows it is about.
    """

    def __init__(self, rows: Sequence[dict]):
        """Takes rows of prompt, response, provenance."""
        provenance = np.array([row["provenance"] for row in rows])
        self.texts = np.array([f"{row['prompt']}\n{row['response']}" for row in rows])
        self.lengths = np.array([len(row["response"]) for row in rows])
        self.unsafe = provenance == "unsafe"
        _, self.prompts = np.unique([row["prompt"] for row in rows], return_inverse=True)
        both = np.intersect1d(self.prompts[self.unsafe], self.prompts[provenance == "safe"])
        hard = np.isin(self.prompts, both)
        easy = self.unsafe | (provenance == "benign")
        self.asked = {"easy": easy, "hard": hard, "hard_within_prompt": hard}


def judge(score: np.ndarray, truth: Truth, topp: float, resamples: int) -> dict:
    """A score's AUC on both questions, and what it keeps.

    Args:
        score: float [N], higher = keep.
        truth: of the same rows.
        topp: share kept.
        resamples: of the bootstrap.

    Returns:
        Each of `QUESTIONS`: see `answer`; unsafe_kept and unsafe: rows; length_spearman: rank
        correlation of the score with the response's length.
    """
    unsafe_kept = int((kept_mask(score, topp) & truth.unsafe).sum())
    return {question: answer(score, truth, question, resamples) for question in QUESTIONS} | {
        "unsafe_kept": unsafe_kept,
        "unsafe": int(truth.unsafe.sum()),
        "length_spearman": round(float(spearmanr(score, truth.lengths).statistic), 3),
    }


def answer(score: np.ndarray, truth: Truth, question: str, resamples: int) -> dict:
    """AUC with its 95 % interval: auc, low, high, and the counts unsafe, other, prompts."""
    rows = truth.asked[question]
    sides = np.asarray(score, np.float64)[rows], truth.unsafe[rows], truth.prompts[rows]
    area = within_prompt_auc if question == "hard_within_prompt" else clustered_auc
    auc, low, high = (round(value, 3) for value in area(*sides, resamples))
    counts = {"unsafe": int(sides[1].sum()), "other": int((~sides[1]).sum())}
    return {"auc": auc, "low": low, "high": high, **counts, "prompts": len(np.unique(sides[2]))}


def clustered_auc(
    score: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray, resamples: int
) -> Interval:
    """AUC with a bootstrap interval over prompts: the rows of a prompt are drawn together.

    Args:
        score: float [N]; unsafe: bool [N]; prompts: int [N], which prompt a row answers.
    """
    _, codes = np.unique(prompts, return_inverse=True)
    n_prompts = codes.max() + 1

    def statistic(drawn: np.ndarray) -> float:
        times = np.bincount(drawn, minlength=n_prompts)[codes]
        rows = np.repeat(np.arange(len(codes)), times)
        labels = ~unsafe[rows]
        return auroc(score[rows], labels) if labels.any() and not labels.all() else np.nan

    return bootstrap_ci(np.arange(n_prompts), statistic, resamples)


def within_prompt_auc(
    score: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray, resamples: int
) -> Interval:
    """Mean over prompts of the AUC among one prompt's own responses, each prompt holding both."""
    members = [prompts == prompt for prompt in np.unique(prompts)]
    return bootstrap_ci([auroc(score[rows], ~unsafe[rows]) for rows in members], n=resamples)


def references(truth: Truth, resamples: int) -> list[dict]:
    """What no model is needed for: length, a supervised bag of words, and figures quoted."""
    length = {name: answer(truth.lengths, truth, name, resamples) for name in QUESTIONS}
    words = {name: answer(bag_of_words(truth, name), truth, name, resamples) for name in QUESTIONS}
    return [
        {"name": "length alone (longer = keep)", "supervised": False, **length},
        {"name": "bag of words, supervised", "supervised": True, **words},
        *QUOTED,
    ]


def bag_of_words(truth: Truth, question: str) -> np.ndarray:
    """Scores of a classifier that is shown the truth of the other prompts: float64 [N].

    Logistic regression on TF-IDF words, out of five folds split by prompt; 0 where not asked.
    """
    rows = truth.asked[question]
    folds = min(5, *np.bincount(truth.unsafe[rows], minlength=2))  # fewer in a quick run
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    score = np.zeros(len(rows))
    if folds < 2:
        return score
    score[rows] = cross_val_predict(
        model,
        truth.texts[rows],
        ~truth.unsafe[rows],
        groups=truth.prompts[rows],
        cv=StratifiedGroupKFold(folds, shuffle=True, random_state=0),
        method="decision_function",
    )
    return score
