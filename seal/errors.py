"""What ends a run early: a user's bad input, a loss that is no number, a request to stop."""

import difflib
import re
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: a single line that names the value, the limit and the remedy.

    Entry points print it as `error: ...` on rank 0 and exit with status 2 on every rank.
    """


class NonFiniteLoss(RuntimeError):
    """A loss or gradient that is not a number: training stops on every rank, status 2."""


class Finished(Exception):
    """The run that was to go on has ended before: status 0, on every rank."""


class Stopped(Exception):
    """The run was asked to stop and has saved all it needs to go on: status 0, on every rank."""


def said(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def known(value: str, values: Iterable[str]) -> str:
    """What may be given in place of `value`, and the one that it was perhaps meant for."""
    values = list(values)
    close = difflib.get_close_matches(value, values, n=1)
    return f"known are {', '.join(values)}" + (f"; did you mean {close[0]}?" if close else "")


def choice(message: str) -> str:
    """argparse's complaint of a value that is none of its choices, in the words of `known`."""
    found = re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
    if not found:
        return message
    flag, value, values = found.groups()
    return f"{flag} {value}: " + known(value, values.replace("'", "").split(", "))
