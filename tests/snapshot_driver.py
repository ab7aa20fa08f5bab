"""Two ranks train a few steps under every ZeRO stage and precision, and save: OUT/<stage>_<bf16>.

deepspeed --num_gpus 2 snapshot_driver.py OUT
"""

import sys
from pathlib import Path

import torch
from test_engine_state import ROWS, engine_of, steps

from seal.trainer.checkpoint import Checkpoints
from seal.utils import engine_state, entry
from seal.utils.strategy import DeepspeedStrategy, Precision, Zero


def main() -> None:
    """Saves after three steps, with what rank 0 then knows: weights, and losses of two more."""
    for stage in range(4):
        for bf16 in (False, True):
            strategy = DeepspeedStrategy(Zero(stage), Precision(bf16))
            strategy.setup_distributed()
            engine = engine_of(strategy)
            steps(strategy, engine, 3)
            out = Path(sys.argv[-1]) / f"{stage}_{int(bf16)}"
            Checkpoints(out, strategy, [engine], {}, max_num=2, max_gb=1).save(3, {})
            state = engine_state.full_state(strategy, engine, trainable_only=False)
            losses = steps(strategy, engine, 2)
            if strategy.is_rank_0():
                torch.save({"weights": state, "losses": losses}, out / "after.pt")
            engine.destroy()


if __name__ == "__main__":
    assert len(ROWS) == 4
    entry.run(main)
