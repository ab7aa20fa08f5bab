"""A demo world on disk: built whole or absent, reused when asked for again."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from seal import __version__
from seal.demo.evaluation import measure_model
from seal.demo.model import adapted, new_model, train, train_tokenizer
from seal.demo.world import Plan, make_rows
from seal.errors import InputError
from seal.files import atomic_folder

FORMAT = "seal-demo-1"
ALIGN_RATE = 2e-3
BASE_RATE = 1e-3  # of the adapter of a base
ALIGN_BATCH = 8


def _reused(out: Path, plan: Plan) -> dict | None:
    """Returns the manifest of a finished world in `out`, None when there is nothing there."""
    path = out / "manifest.json"
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} exists and is not a demo world; give another --out")
        return None
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{out} is of format {manifest.get('format')}, not {FORMAT}; give another --out"
        )
    asked, there = asdict(plan), {**asdict(Plan()), **manifest["plan"]}
    differ = [f"{k} is {there.get(k)}, asked {asked[k]}" for k in asked if there.get(k) != asked[k]]
    if differ:
        raise InputError(f"{out} holds another world: {'; '.join(differ)}; give another --out")
    return manifest


def _write_rows(path: Path, rows: list[dict]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def _make(folder: Path, plan: Plan, say: Callable[[str], None]) -> dict:
    """Fills `folder` with the world of `plan`; returns its manifest."""
    start, start_cpu = time.monotonic(), time.process_time()
    world = make_rows(plan)
    for name, rows in world.items():
        _write_rows(folder / f"{name}.jsonl", rows)
    if plan.base:
        model, tokenizer = adapted(plan.base, plan.seed)
    else:
        tokenizer = train_tokenizer(
            [row[key] for row in world["aligned"] for key in ("prompt", "response")]
        )
        model = new_model(tokenizer, plan.seed)
    say(f"aligning a model of {model.num_parameters():,} parameters on {plan.aligned_rows} rows")
    train(
        model, tokenizer, world["aligned"], epochs=plan.epochs, seed=plan.seed,
        lr=BASE_RATE if plan.base else ALIGN_RATE, batch_size=ALIGN_BATCH, say=say,
    )  # fmt: skip
    if plan.base:
        model = model.merge_and_unload()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    manifest = {
        "format": FORMAT,
        "plan": asdict(plan),
        "rows": {name: len(rows) for name, rows in world.items()},
        "parameters": model.num_parameters(),
        "measured": measure_model(model, tokenizer, folder),
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(time.process_time() - start_cpu, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "seal": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def build(
    plan: Plan, out: str | os.PathLike, say: Callable[[str], None] = lambda line: None
) -> tuple[dict, bool]:
    """Builds the world of `plan` in directory `out`, or finds it there.

    The directory appears whole, by a rename, or not at all. It holds model/ (weights,
    tokenizer, chat template), aligned.jsonl, safe.jsonl, user.jsonl, canaries.jsonl,
    eval_refusal.jsonl, eval_over_refusal.jsonl, eval_utility.jsonl and manifest.json.

    Args:
        say: is given one line of progress at a time.

    Returns:
        The manifest, and whether it was there already.

    Raises:
        InputError: `out` holds something else, or a world of another plan.
    """
    out = Path(out)
    manifest = _reused(out, plan)
    if manifest is not None:
        return manifest, True
    with atomic_folder(out) as folder:
        manifest = _make(folder, plan, say)
    return manifest, False
