"""`seal completion`: the script that lets a shell complete subcommands and flags."""

import argparse

from seal.errors import InputError

EXAMPLE = 'source <(seal completion bash)    # in ~/.bashrc; zsh: eval "$(seal completion zsh)"'


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "completion", help="let the shell complete subcommands and flags"
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="whose script to print")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    from seal.command import build_parser

    try:
        import shtab
    except ImportError as error:
        raise InputError("completion needs shtab: pip install -e .[completion]") from error
    script = shtab.complete(build_parser(), shell=args.shell)
    return {"shell": args.shell, "script": script}, script
