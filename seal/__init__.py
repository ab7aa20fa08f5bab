"""SEAL: safety-enhanced fine-tuning by bilevel data selection."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

    from seal.selection.artefact import Selection

__version__ = "0.1.0"


def select(
    dataset: "datasets.Dataset",
    selector: str | os.PathLike,
    topp: "float | str",
    *,
    unscored: str = "error",
    input_key: str | None = None,
    output_key: str | None = None,
    max_canary_kept: float = 0.05,
    confidence: float = 0.95,
) -> "datasets.Dataset":
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
        UserWarning: the selector's own evidence puts it in doubt.

    Raises:
        InputError: `dataset` is no `datasets.Dataset` or of unknown schema, the selector is
            refused or for other rows, topp is out of range or not justified, or rows have no score
            under `error`.

    Examples:
        >>> rows = datasets.load_dataset("json", data_files="user.jsonl", split="train")
        >>> kept = seal.select(rows, "ckpt/mine_softmax.parquet", topp=0.8)
    """
    from seal.selection.rows import kept_rows  # `import seal` itself loads nothing

    return kept_rows(
        dataset,
        selector,
        topp,
        unscored=unscored,
        input_key=input_key,
        output_key=output_key,
        max_canary_kept=max_canary_kept,
        confidence=confidence,
    )


def score(
    dataset: "datasets.Dataset | str",
    safe: "datasets.Dataset | str",
    method: str,
    *,
    pretrain: str,
    out: str | os.PathLike,
    **flags,
) -> "Selection":
    """Scores every row by one method, in this process, and writes the selector.

    The scores and the file are those of `examples/score_dataset.py` with the same flags.

    Args:
        dataset: rows to score, of any schema of `docs/data.md`, or the name of a file or dataset.
        safe: the trusted rows, likewise.
        method: how a row is scored; `docs/method.md` compares the methods.
        pretrain: model directory or hub name.
        out: the .parquet file to write.
        flags: any other flag of the script by its name (`docs/flags.md`): True sets a switch, and
            `unsafe_dataset` and `canary_dataset` take rows as `dataset` does.

    Returns:
        The selector: `score`, float32 [N], higher = keep, beside `id`, `row` and `meta`.

    Raises:
        InputError: an unknown method or flag, a value out of bounds, unreadable rows, or a
            selector is there and `overwrite` is not given.

    Examples:
        >>> seal.score(rows, "safe.jsonl", "relative_excess", pretrain="MODEL", out="mine.parquet")
        >>> kept = seal.select(rows, "mine.parquet", topp=0.8)
    """
    from seal.cli.score_dataset import score_values  # `import seal` itself loads nothing

    given = {"new_dataset": dataset, "dataset": safe, "method": method, "pretrain": pretrain}
    return score_values(out, flags | given)
