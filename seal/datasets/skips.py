"""Why rows are left out: counted by reason, the first named, and too many an error."""

import logging

import numpy as np
import pyarrow as pa

from seal.errors import InputError

logger = logging.getLogger(__name__)

MOST_ODD = 0.05  # of the rows may be odd ones before they end a run
MANY = 0.1  # of the rows left out, for whatever reason, is worth a warning


def count_skips(skip: pa.ChunkedArray, odd: tuple[str, ...], where: str = "") -> dict[str, int]:
    """Counts the rows that are left out, by reason, the most frequent first.

    Args:
        skip: "reason" or "reason: detail" of each row, null for a row that stays.
        odd: The reasons of rows that are not as they should be: the first row of each is named.
        where: Put before "row 3".

    Raises:
        InputError: More than MOST_ODD of the rows are odd.
    """
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    told = skip.drop_null().to_pylist()
    for row, text in zip(np.flatnonzero(skip.is_valid()), told, strict=True):
        reason, _, detail = text.partition(": ")
        counts[reason] = counts.get(reason, 0) + 1
        first.setdefault(reason, f"{where}row {row} (from 0): {detail or reason}")
    too_many = sum(counts.get(reason, 0) for reason in odd) > MOST_ODD * len(skip)
    for reason in odd:
        if reason in counts:
            message = f"{first[reason]}; {counts[reason]} of {len(skip)} rows are {reason}"
            if too_many:
                raise InputError(f"{message}, and more than {MOST_ODD:.0%} odd rows end the run")
            logger.warning("%s and left out", message)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def listed(counts: dict[str, int]) -> str:
    """Counts in words."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
