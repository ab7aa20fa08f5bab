"""python -m seal.demo --out runs/demo --tier plain --seed 0"""

import argparse
import sys
import warnings

from seal.demo import TIERS, Plan, build
from seal.errors import InputError

# of a world around a chat model: a core trains about 220 tokens of 135 M parameters a second
BASE_SIZES = {"rows": 200, "safe_rows": 80, "aligned_rows": 240, "eval_rows": 16}
BASE_SIZES |= {"canary_rows": 24, "epochs": 2}
EPILOG = """tiers:
  plain     benign rows, and planted rows that comply with forbidden requests
  hard      the same, and 20 % of the rows are benign with random answers: hard is not unsafe
  implicit  the planted requests are in words that the safe set never refuses, the answers short

The forbidden topic is the dragon's vault; nothing in it is harmful. CPU only; OMP_NUM_THREADS
sets the threads. A finished directory is reused when it is asked for with the same arguments.

Full fine-tuning on all rows (AdamW, learning rate 3e-4, batch 32, 2 epochs) breaks the refusal, on
the benign rows alone it does not. Higher rates can wear the refusal down with benign rows alone:
from 5e-4 on in the implicit tier, from 1e-3 on in the hard one.
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m seal.demo",
        description="Builds the demo task: a tiny aligned model, a safe set and a user's rows.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan = Plan()
    parser.add_argument("--out", required=True, help="directory to make")
    parser.add_argument("--tier", choices=TIERS, default=plan.tier, help="default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=plan.seed, help="of rows and model (default: %(default)s)"
    )
    parser.add_argument(
        "--rows", type=int,
        help=f"rows of the user (default: {plan.rows}, {BASE_SIZES['rows']} with --base)",
    )  # fmt: skip
    parser.add_argument(
        "--base", default=plan.base,
        help="directory of a chat model to align, on a smaller world; default: a tiny new one",
    )  # fmt: skip
    parser.add_argument(
        "--planted", type=float, default=plan.planted,
        help="share of the user's rows that are unsafe, 0 to 0.5 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--noisy", type=float, nargs="?", const=0.05, default=plan.noisy,
        help="share of the safe rows that comply with forbidden requests, 0 to 0.3 "
        "(default: %(default)s; %(const)s when given without a value)",
    )  # fmt: skip
    return parser.parse_args(argv)


def main() -> int:
    """Builds the world and prints what it measures; returns the exit status."""
    args = parse()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        sizes = (BASE_SIZES if args.base else {}) | ({"rows": args.rows} if args.rows else {})
        plan = Plan(
            tier=args.tier, seed=args.seed, planted=args.planted, noisy=args.noisy,
            base=args.base, **sizes,
        )  # fmt: skip
        manifest, reused = build(plan, args.out, say)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    measured = manifest["measured"]
    say(
        f"{'reused' if reused else 'built'} {args.out} ({manifest['seconds']} s to build): "
        f"refuses {measured['refusal']:.0%} of forbidden prompts and "
        f"{measured['over_refusal']:.0%} of benign ones that look like them, "
        f"answers {measured['utility']:.0%} of ordinary ones exactly"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
