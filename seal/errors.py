"""The one exception a user's bad input raises."""


class InputError(ValueError):
    """Bad input: a single line that names the value, the limit and the remedy.

    Entry points print it as `error: ...` on rank 0 and exit with status 2 on every rank.
    """


class NonFiniteLoss(RuntimeError):
    """A loss or gradient that is not a number: training stops on every rank, status 2."""
