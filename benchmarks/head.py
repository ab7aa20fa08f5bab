"""The loss on a language-model head: ours, Liger's (CUDA), and full logits, forward and backward.

    python benchmarks/head.py --out benchmarks/results/head.json

Per-token losses with a coefficient each, as the selector needs them; the head of Llama-3-8B on a
GPU, a small one on a CPU; frozen as under LoRA, and trained. `error` is that of the gradient of the
hidden states against float32, relative. Medians of `--repeats`; the last line is JSON.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from step_measure import added_gib, device_name, timed

from seal.models.loss import head_losses
from seal.provenance import commit, versions

SIZES = {"cuda": (128_256, 4096), "cpu": (8192, 256)}  # vocabulary, hidden
TOKENS = {"cuda": [512, 4096], "cpu": [256]}


def ours(hidden, weight, targets, coefficients) -> torch.Tensor:
    """The package's."""
    return head_losses(hidden, weight, None, targets, coefficients)[-1]


def liger(hidden, weight, targets, coefficients, room: int = 1) -> torch.Tensor:
    """Liger's, with chunks of logits that hold `room` times what the hidden states do."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    rest = (None, False, None, False, False, False, None, None, room)
    nll, *_ = LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, targets, None, None, -100, 0.0, 0.0, "none", *rest
    )
    return coefficients @ nll


def liger_with_room(hidden, weight, targets, coefficients) -> torch.Tensor:
    """The same with larger chunks."""
    return liger(hidden, weight, targets, coefficients, room=16)


def full_logits(hidden, weight, targets, coefficients) -> torch.Tensor:
    """All logits at once, in float32."""
    logits = F.linear(hidden, weight).float()
    return coefficients @ F.cross_entropy(logits, targets, reduction="none")


def main() -> None:
    """Measures every way, and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=SIZES, default="cuda" if cuda else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", help="supervised tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    ways: list[Callable] = [ours, full_logits]
    if args.device == "cuda" and importlib.util.find_spec("liger_kernel"):
        ways += [liger, liger_with_room]
    results = []
    for tokens, trained in product(args.tokens or TOKENS[args.device], (False, True)):
        inputs = draw(tokens, trained, args.device)
        exact = gradient(full_logits, [x.float() if x.is_floating_point() else x for x in inputs])
        for way in ways:
            row = {"way": way.__name__, "tokens": tokens, "head trained": trained}
            row |= measure(way, inputs, exact, args.device, args.repeats)
            print("head", row, flush=True)
            results.append(row)
    record = {"command": " ".join(sys.argv), "commit": commit(), "versions": versions()}
    record |= {"machine": device_name(args.device), "results": results}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(results))


def draw(tokens: int, trained: bool, device: str) -> list[torch.Tensor]:
    """Hidden states [S, H], weight [V, H], targets [S] and coefficients [S]."""
    vocabulary, size = SIZES[device]
    torch.manual_seed(tokens)
    hidden = torch.randn(tokens, size, device=device).bfloat16().requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, size, device=device)).bfloat16()
    targets = torch.randint(vocabulary, (tokens,), device=device)
    return [hidden, weight.requires_grad_(trained), targets, torch.rand(tokens, device=device)]


def gradient(way: Callable, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Of the objective with respect to the hidden states, float32."""
    return torch.autograd.grad(way(*inputs), inputs[0])[0].float()


def measure(way: Callable, inputs: list, exact: torch.Tensor, device: str, repeats: int) -> dict:
    """Seconds, memory and error of one way; why where it cannot run."""

    def once() -> None:
        way(*inputs).backward()

    try:
        error = (gradient(way, inputs) - exact).norm() / exact.norm()
        seconds = [timed(once, device)[0] for _ in range(repeats + 1)][1:]
    except (RuntimeError, TypeError) as failure:
        return {"failed": str(failure).splitlines()[0]}
    return {
        "n": repeats,
        "ms": round(1e3 * statistics.median(seconds), 2),
        "ms range": [round(1e3 * value, 2) for value in (min(seconds), max(seconds))],
        "added_gib": round(added_gib(once, device), 3),
        "error": round(float(error), 5),
    }


if __name__ == "__main__":
    main()
