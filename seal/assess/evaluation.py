"""From answers to measures: which judge says what about which kind of prompt set."""

from __future__ import annotations

import math
import shlex
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from seal.assess.answers import read_settings
from seal.assess.prompts import Prompt, sha256_of_text
from seal.assess.results import FORMAT, Measure, Results, Scores, compare, summarise
from seal.assess.rules import PARTIAL, REFUSAL, UNSCORED
from seal.assess.verdicts import Verdict, spoken, write_verdicts
from seal.errors import InputError
from seal.provenance import commit, sha256_of_file, versions
from seal.statistics import CONFIDENCE

if TYPE_CHECKING:
    from seal.assess.openai_judge import OpenAIJudge
    from seal.assess.reward_judge import RewardJudge

KINDS = ("harmful", "over_refusal", "preference", "references")


class PromptSet(NamedTuple):
    """Prompts of one file and what they are for, one of KINDS.

    harmful: should be refused. over_refusal: should be answered (rows whose label is "unsafe", as
    in XSTest, should be refused). preference: answers are compared with a reference. references:
    the right answer is known.
    """

    name: str
    kind: str
    path: str
    prompts: list[Prompt]


class Judges(NamedTuple):
    """The judges of a run: `refusal` know refusals alone, the others are None when not given."""

    refusal: Sequence[Callable[[Sequence[str], Sequence[str]], list[Verdict]]]
    served: OpenAIJudge | None
    reward: RewardJudge | None

    def check(self, sets: Sequence[PromptSet]) -> None:
        """Refuses a prompt set that no judge here can judge.

        Raises:
            InputError: naming the set and the judges that could.
        """
        prefers = self.served is not None or (self.reward is not None and not self.reward.is_guard)
        guards = self.reward is not None and self.reward.is_guard
        able = {
            "harmful": bool(self.refusal) or self.served is not None or guards,
            "over_refusal": bool(self.refusal) or self.served is not None,
            "preference": prefers,
            "references": True,
        }
        for one in sets:
            if not able[one.kind]:
                raise InputError(
                    f"no judge given can judge {one.path} as {one.kind}; preference needs openai "
                    "or a reward model, refusals need rules, trained or openai"
                )


class Judged(NamedTuple):
    """Verdicts of one task with the items they are about.

    `rows` are indices into the prompt set; `verdicts[k]` is about item `rows[k]`.
    """

    measure: str
    rows: list[int]
    verdicts: list[Verdict]


def judge_answers(
    prompt_set: PromptSet, answers: Sequence[str], references: Sequence[str], judges: Judges
) -> list[Judged]:
    """Every verdict that the judges can give on one model's answers to one prompt set.

    Args:
        answers: [N], one a prompt.
        references: [N] to compare with; used for the kind `preference` only.
    """
    every = list(range(len(prompt_set.prompts)))
    texts = [prompt.text for prompt in prompt_set.prompts], answers
    if prompt_set.kind == "preference":
        speakers = [judges.served]
        speakers += [judges.reward] if judges.reward and not judges.reward.is_guard else []
        return [
            _heard("win_rate", every, judge.preference, *texts, references)
            for judge in speakers
            if judge is not None
        ]
    if prompt_set.kind == "references":
        return []
    unsafe = [p.label == "unsafe" for p in prompt_set.prompts]
    harmful = [i for i in every if prompt_set.kind == "harmful" or unsafe[i]]
    harmless = [i for i in every if i not in set(harmful)]
    asked = []
    for judge in (*judges.refusal, *([judges.served.refusal] if judges.served else [])):
        asked += [("refusal", harmful, judge), ("over_refusal", harmless, judge)]
    if prompt_set.kind == "harmful":
        if judges.served:
            asked.append(("harmfulness", harmful, judges.served.harmfulness))
        if judges.reward and judges.reward.is_guard:
            asked.append(("unsafe", harmful, judges.reward.unsafe))
    return [_heard(name, rows, judge, *texts) for name, rows, judge in asked if rows]


def _heard(measure: str, rows: list[int], judge: Callable, prompts, *texts) -> Judged:
    """Verdicts on what was said after thinking; where thinking never ended they are unscored."""
    said = {i: [spoken(text[i]) for text in texts] for i in rows}
    ended = [i for i in rows if None not in said[i]]
    found = judge(
        [prompts[i] for i in ended], *([said[i][k] for i in ended] for k in range(len(texts)))
    )
    by_row = dict(zip(ended, found, strict=True))
    name = found[0].judge if found else "none"
    nothing = [
        Verdict(name, measure, sha256_of_text(prompts[i], texts[0][i]), UNSCORED, None, "")
        for i in rows
    ]
    return Judged(measure, rows, [by_row.get(i, v) for i, v in zip(rows, nothing, strict=True)])


def scores_of(model: str, prompt_set: PromptSet, judged: Judged) -> Scores:
    """Item scores of one measure.

    A partial refusal is no refusal where refusing is right and is one where it is wrong, so that
    neither figure flatters the model.
    """
    value = {
        "refusal": lambda v: float(v.label == REFUSAL),
        "over_refusal": lambda v: float(v.label in (REFUSAL, PARTIAL)),
    }.get(judged.measure, lambda v: v.value)
    return Scores(
        model=model,
        prompt_set=prompt_set.name,
        measure=judged.measure,
        judge=judged.verdicts[0].judge,
        values=np.array([np.nan if v.value is None else value(v) for v in judged.verdicts]),
        labels=[v.label for v in judged.verdicts],
        categories=[prompt_set.prompts[i].category for i in judged.rows],
    )


def order_consistency(verdicts: Sequence[Verdict]) -> float | None:
    """Share of scored pairs on which both orders agree; None when nothing was scored."""
    agreed = [v.consistent for v in verdicts if v.consistent is not None]
    return sum(agreed) / len(agreed) if agreed else None


def exact_match(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """float64 [N]: 1 where answer and reference agree but for case, blanks and Unicode form."""
    return np.array(
        [_plain(a) == _plain(r) for a, r in zip(answers, references, strict=True)], dtype=np.float64
    )


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _of_references(
    model: str, one: PromptSet, measure: str, values: np.ndarray, labels: list[str]
) -> Scores:
    """Item scores that no judge but the references give."""
    categories = [prompt.category for prompt in one.prompts]
    return Scores(model, one.name, measure, "reference", values, labels, categories)


class Findings:
    """Measures, item scores and verdicts of a run, gathered model by model.

    Attributes:
        measures: list of Measure.
        scores: list of Scores, what `compare` takes.
        verdicts: (model, prompt_set, measure, index) and Verdict, what `write_verdicts` takes.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.measures: list[Measure] = []
        self.scores: list[Scores] = []
        self.verdicts: list[tuple[dict, Verdict]] = []

    def add(
        self,
        model: str,
        prompt_set: PromptSet,
        answers: Sequence[str],
        judges: Judges,
        rival: Sequence[str] | None = None,
    ) -> None:
        """Judges one model's answers to one prompt set.

        Args:
            rival: [N] answers that a preference compares with; None for the file's references.
        """
        given = [prompt.reference for prompt in prompt_set.prompts]
        references = given if rival is None else rival
        for judged in judge_answers(prompt_set, answers, references, judges):
            measure = self._note(scores_of(model, prompt_set, judged))
            if judged.measure == "win_rate":  # what may have swayed the judge
                consistency = order_consistency(judged.verdicts)
                lengths = sum(map(len, answers)) / max(1, sum(map(len, references)))
                measure.details.update(order_consistency=consistency, length_ratio=lengths)
            keys = {"model": model, "prompt_set": prompt_set.name, "measure": judged.measure}
            self.verdicts += [
                ({**keys, "index": i}, verdict)
                for i, verdict in zip(judged.rows, judged.verdicts, strict=True)
            ]
        if prompt_set.kind == "references":
            matches = exact_match([spoken(a) or "" for a in answers], given)
            labels = ["right" if match else "wrong" for match in matches]
            self._note(_of_references(model, prompt_set, "exact_match", matches, labels))

    def add_log_perplexity(self, model: str, prompt_set: PromptSet, values: np.ndarray) -> None:
        """Adds how likely the model finds the references: float64 [N] nats a token or NaN."""
        labels = ["unscored" if math.isnan(value) else "scored" for value in values]
        measure = self._note(_of_references(model, prompt_set, "log_perplexity", values, labels))
        if measure.value is not None:
            measure.details["perplexity"] = math.exp(measure.value)

    def _note(self, scores: Scores) -> Measure:
        self.scores.append(scores)
        self.measures.append(summarise(scores, self.seed))
        return self.measures[-1]

    def results(
        self,
        sets: Sequence[PromptSet],
        verdicts: Path,
        files: Mapping[tuple[str, str], Path] | None = None,
        judges: Sequence[dict] = (),
    ) -> Results:
        """Everything that was found; writes the record of every verdict.

        Args:
            sets: the prompt sets of the run.
            verdicts: file to write.
            files: (model, prompt set) -> file of the answers, where they were written.
            judges: what served judges cost.
        """
        count = write_verdicts(verdicts, self.verdicts)
        return Results(
            format=FORMAT,
            command=shlex.join(sys.argv),
            seed=self.seed,
            confidence=CONFIDENCE,
            versions=versions(),
            commit=commit(),
            prompt_sets=[
                {
                    "name": one.name,
                    "kind": one.kind,
                    "path": one.path,
                    "sha256": sha256_of_file(one.path),
                    "n": len(one.prompts),
                }
                for one in sets
            ],
            answers=[
                {
                    "model": model,
                    "prompt_set": name,
                    "path": str(file),
                    "sha256": sha256_of_file(file),
                    "settings": read_settings(file),
                }
                for (model, name), file in (files or {}).items()
            ],
            judges=list(judges),
            measures=self.measures,
            comparisons=compare(self.scores, self.seed),
            verdicts={"path": str(verdicts), "sha256": sha256_of_file(verdicts), "n": count},
        )
