"""The `seal` command: look at a selector and use it, without a GPU and without deepspeed.

One module a subcommand, whose docstring is its description, with

    EXAMPLE                                      a command line that shows it
    add_parser(subparsers)                       names its flags and `set_defaults(run=run)`
    run(args: argparse.Namespace) -> (dict, str) the result for --json, and the same for a reader
"""

import argparse
import contextlib
import json
import os
import sys
import warnings

from seal import __version__
from seal.command import (
    compare,
    completion,
    convert,
    doctor,
    export,
    merge,
    merge_scores,
    report,
    score_new,
    show,
)
from seal.errors import InputError, choice
from seal.progress import Progress

SUBCOMMANDS = (
    show,
    report,
    export,
    compare,
    convert,
    score_new,
    merge_scores,
    merge,
    doctor,
    completion,
)


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line with exit status 2, as for all bad input."""

    def error(self, message: str):
        """Reports a flag that does not parse."""
        self.exit(2, f"error: {choice(message)}; see {self.prog} --help\n")


def build_parser() -> Parser:
    """The parser of every subcommand; each also has `--json`."""
    parser = Parser(prog="seal", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"seal {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in SUBCOMMANDS:
        module.add_parser(subparsers)
    for module, subparser in zip(SUBCOMMANDS, subparsers.choices.values(), strict=True):
        subparser.description = module.__doc__
        subparser.epilog = f"example:\n  {module.EXAMPLE}"
        subparser.formatter_class = argparse.RawDescriptionHelpFormatter
        subparser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand.

    Returns:
        the exit status: 0, 1 when a check failed (the result's `ok` is false), or 2 after one
        line `error: ...` for bad input.
    """
    args = build_parser().parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        # deepspeed logs to stdout when it is imported
        with contextlib.redirect_stdout(sys.stderr), Progress("working"):
            result, text = args.run(args)
        print(json.dumps(result, ensure_ascii=False, allow_nan=False) if args.json else text)
        sys.stdout.flush()
    except BrokenPipeError:  # `seal show ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if result.get("ok") is False else 0
