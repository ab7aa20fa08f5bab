"""The selection as an operation on a `datasets.Dataset`."""

import os
import warnings

import datasets

from seal.datasets.identity import number_rows, row_keys
from seal.datasets.prompts import GIVEN, readable, to_messages
from seal.errors import InputError
from seal.selection.artefact import select_rows
from seal.selection.calibration import CONFIDENCE, MAX_CANARY_KEPT, share_kept
from seal.selection.evidence import SAID, doubts
from seal.selection.load import load_selection


def select(
    dataset: datasets.Dataset,
    selector: str | os.PathLike,
    topp: float | str,
    *,
    unscored: str = "error",
    input_key: str | None = None,
    output_key: str | None = None,
    max_canary_kept: float = MAX_CANARY_KEPT,
    confidence: float = CONFIDENCE,
) -> datasets.Dataset:
    """The rows of a dataset that a selector keeps, as they are and in their order.

    Rows are found by content: the dataset may have been shuffled, extended or written in another
    schema since it was scored.

    Args:
        dataset: rows of any schema of `docs/data.md`, with all their columns.
        selector: the .parquet file of a selector.
        topp: share of the scored rows to keep, in (0, 1], or "auto": what the canaries justify.
        unscored: what to do with rows that have no score: `error`, `drop` or `keep`.
        input_key: column of the prompt, where the schema is not recognised.
        output_key: column of the response.
        max_canary_kept, confidence: limit of "auto", and of the bound on it.

    Returns:
        `dataset.select(...)` of the kept rows: nothing is copied, every column is carried.

    Warns:
        UserWarning: the selector's own evidence puts it in doubt, and nothing has said so yet.

    Raises:
        InputError: `dataset` is no `datasets.Dataset` or of unknown schema, the selector is
            refused or for other rows, topp is out of range or not justified, or rows have no score
            under `error`.

    Examples:
        >>> rows = datasets.load_dataset("json", data_files="user.jsonl", split="train")
        >>> kept = seal.select(rows, "ckpt/mine_softmax.parquet", topp=0.8)
    """
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(
            f"select needs a datasets.Dataset, got a {type(dataset).__name__}; of several splits "
            'give one, as dataset["train"]'
        )
    plain = dataset.with_format(None)
    rows = readable(number_rows(to_messages(plain, GIVEN, input_key, output_key)))
    selection = load_selection(selector)
    for doubt in doubts(selection.meta):
        if doubt not in SAID:
            warnings.warn(doubt, stacklevel=2)
    share = share_kept(selection, topp, max_canary_kept, confidence)
    selected = select_rows(*row_keys(rows), selection, share, unscored)
    return dataset.select(rows.select(selected.indices)["row"])
