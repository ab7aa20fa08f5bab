"""A selector of one model filters the data of another, though each tokenizer drops other rows."""

import numpy as np
import pytest
from tiny_world import make_rows, make_tokenizer, write_rows

from seal.datasets import load_rows, tokenize_rows
from seal.errors import InputError
from seal.selection.artefact import make_selection, select_rows, selection_meta

MAX_LEN = 80  # tokens; prompts that leave no room for a response are dropped


@pytest.fixture(scope="module")
def tokenised(tmp_path_factory):
    """The same rows under two tokenizers."""
    folder = tmp_path_factory.mktemp("transfer")
    rows = make_rows(200, seed=1)
    for number, row in enumerate(rows):
        row["prompt"] += " the river" * (number % 20)
    write_rows(folder / "user.jsonl", rows)
    loaded = load_rows(str(folder / "user.jsonl"))
    one, other = make_tokenizer(), make_tokenizer(vocabulary=262, seed=4)
    return [tokenize_rows(loaded, tokenizer, max_len=MAX_LEN) for tokenizer in (one, other)]


def scored(rows):
    """A selector over the rows, with random scores."""
    meta = selection_meta(
        method="random",
        fingerprint=rows.fingerprint,
        raw=rows.raw,
        skipped=rows.skipped,
        max_len=MAX_LEN,
    )
    columns = {"id": rows.ids, "occurrence": rows.occurrences, "row": rows.row_numbers}
    score = np.random.default_rng(0).random(len(rows))
    return make_selection(columns | {"score": score}, meta), dict(
        zip(rows.ids.tolist(), score, strict=True)
    )


@pytest.mark.parametrize("scorer, user", [(0, 1), (1, 0)])
def test_rows_are_kept_by_the_score_they_got_under_another_tokenizer(tokenised, scorer, user):
    there, here = tokenised[scorer], tokenised[user]
    assert len(there) != len(here)
    selection, score = scored(there)
    lowest = np.sort(selection.score)[-round(0.5 * len(there))]
    selected = select_rows(here.ids, here.occurrences, selection, 0.5, "drop")
    ours, theirs = set(here.ids.tolist()), set(there.ids.tolist())
    expected = {row for row in ours & theirs if np.float32(score[row]) >= lowest}
    assert set(here.ids[selected.indices].tolist()) == expected
    assert selected.unscored == len(ours - theirs)
    assert selected.missing == len(theirs - ours)


def test_rows_the_scorer_dropped_are_never_kept_in_silence(tokenised):
    few, many = sorted(tokenised, key=len)
    selection, _ = scored(few)
    with pytest.raises(InputError, match=f"{len(many) - len(few)} of {len(many)} dataset rows"):
        select_rows(many.ids, many.occurrences, selection, 0.5)
