"""An engine's state survives a file under every ZeRO stage and precision, and damage is noticed."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import deepspeed
from laws_driver import make_dataset
from tiny import random_rows, tiny_model
from torch.nn import Parameter

from seal.errors import InputError, NonFiniteLoss
from seal.models.actor import Actor
from seal.models.attention import VARLEN
from seal.trainer.checkpoint import Checkpoints
from seal.trainer.step import RowModel
from seal.utils import engine_state
from seal.utils.strategy import DeepspeedStrategy, Precision, Zero

ROWS = random_rows([24, 3, 17, 9], seed=4)
SHARE = torch.full((len(ROWS),), 0.05)


def engine_of(strategy):
    """A fresh engine, the same at every call."""
    actor = Actor(tiny_model("llama", attn_implementation=VARLEN))
    if strategy.precision.bf16:
        actor = actor.bfloat16()
    optimizer = strategy.create_optimizer(actor, 1e-2, 0.1)
    return strategy.prepare(actor, optimizer, lambda step: 1.0 / (step + 1))


def steps(strategy, engine, count: int) -> list[torch.Tensor]:
    """Trains a few steps; returns each one's losses."""
    losses = RowModel(engine, strategy, make_dataset(ROWS), capacity=48)
    found = []
    for _ in range(count):
        found.append(losses.backward(np.arange(len(ROWS)), SHARE))
        strategy.step(engine)
    return found


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("stage", range(4))
def test_a_fresh_engine_goes_on_bit_for_bit(tmp_path, stage, bf16):
    strategy = DeepspeedStrategy(Zero(stage), Precision(bf16))
    strategy.setup_distributed()
    engine = engine_of(strategy)
    steps(strategy, engine, 3)
    snapshots = Checkpoints(tmp_path, strategy, [engine], {"seed": 0}, max_num=2, max_gb=1)
    snapshots.save(3, {})
    expected = steps(strategy, engine, 3)
    rate = engine.get_lr()
    engine.destroy()

    resumed = engine_of(strategy)
    snapshots = Checkpoints(tmp_path, strategy, [resumed], {"seed": 0}, max_num=2, max_gb=1)
    assert snapshots.begin("auto") == (3, {})
    for mine, theirs in zip(steps(strategy, resumed, 3), expected, strict=True):
        assert torch.equal(mine, theirs)
    assert resumed.get_lr() == rate
    resumed.destroy()


@pytest.mark.parametrize("stage", range(4))
def test_the_speed_that_a_step_logs(stage):
    strategy = DeepspeedStrategy(Zero(stage))
    strategy.setup_distributed()
    engine = engine_of(strategy)
    speed = strategy.speed(engine, seconds=2.0, forward=100, backward=40)
    engine.destroy()
    model = tiny_model("llama")
    weights = model.num_parameters() - model.get_input_embeddings().weight.numel()
    assert speed.pop("train/tflops") == pytest.approx((2 * 100 + 4 * 40) * weights / 2e12)
    assert speed.pop("train/tokens_per_second") == 50 and 0.1 < speed.pop("train/peak_gib") < 24
    assert not speed


@pytest.mark.parametrize("stage", range(4))
def test_an_engine_that_is_released_leaves_no_tensor(stage):
    strategy = DeepspeedStrategy(Zero(stage))
    strategy.setup_distributed()
    held = []
    for _ in range(3):
        engine = engine_of(strategy)
        steps(strategy, engine, 2)
        strategy.release(engine)
        del engine
        gc.collect()
        held.append(sum(map(bytes_of, gc.get_objects())))
    assert held[1] == held[0] and held[2] == held[0]


def bytes_of(thing: object) -> int:
    """Bytes of a tensor's storage; 0 for anything else."""
    return thing.untyped_storage().nbytes() if type(thing) in (torch.Tensor, Parameter) else 0


PRECISIONS = {"fp32": Precision(), "bf16": Precision(True), "bf16 sums": Precision(True, "bf16")}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", range(4))
def test_a_step_of_a_bad_gradient_norm_changes_nothing(stage, precision):
    strategy = DeepspeedStrategy(Zero(stage), PRECISIONS[precision])
    strategy.setup_distributed()
    engine = engine_of(strategy)
    steps(strategy, engine, 2)  # Adam would go on with its moments where gradients are zero
    before = engine_state.full_state(strategy, engine, trainable_only=False)
    model = RowModel(engine, strategy, make_dataset(ROWS), capacity=48)
    model.backward(np.arange(len(ROWS)), SHARE * float("inf"))
    with pytest.raises(NonFiniteLoss, match=r"step 3: the gradient norm is (nan|inf)"):
        strategy.step(engine, 3)
    after = engine_state.full_state(strategy, engine, trainable_only=False)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    engine.destroy()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    strategy = DeepspeedStrategy(Zero(0))
    strategy.setup_distributed()
    engine = engine_of(strategy)
    steps(strategy, engine, 1)
    snapshots = Checkpoints(tmp_path, strategy, [engine], {}, max_num=2, max_gb=1)
    snapshots.save(1, {})
    file = next(tmp_path.glob("*/step_1/engine_0.0.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if damage == "flip" else content[:-100])
    if damage == "gone":
        file.unlink()
    with pytest.raises(InputError, match=r"engine_0.0.pt is not as it was written"):
        snapshots.begin("auto")


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    """Snapshots of two ranks under every ZeRO stage and precision (snapshot_driver.py)."""
    out = tmp_path_factory.mktemp("two")
    done = deepspeed(Path(__file__).with_name("snapshot_driver.py"), out)
    assert done.status == 0, done.output[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [0, 1])
@pytest.mark.parametrize("stage", range(4))
def test_each_rank_writes_its_own_part_and_one_rank_reads_them_all(of_two_ranks, stage, bf16):
    folder = of_two_ranks / f"{stage}_{bf16}"
    parts = [next(folder.glob(f"*/step_3/engine_0.{rank}.pt")) for rank in range(2)]
    values = 12 * sum(p.numel() for p in tiny_model("llama").parameters())
    for part in parts:  # padding, names and the like beside the values
        assert 0.4 * values < part.stat().st_size < 0.6 * values + 20_000
    strategy = DeepspeedStrategy(Zero(stage), Precision(bool(bf16)))
    strategy.setup_distributed()
    engine = engine_of(strategy)
    assert Checkpoints(folder, strategy, [engine], {}, 2, 1).begin("auto") == (3, {})
    after = torch.load(folder / "after.pt", weights_only=True)
    state = engine_state.full_state(strategy, engine, trainable_only=False)
    assert state.keys() == after["weights"].keys()
    assert all(torch.equal(state[name], after["weights"][name]) for name in state)
    for mine, theirs in zip(steps(strategy, engine, 2), after["losses"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2 if bf16 else 1e-4, atol=0)
    engine.destroy()


@pytest.mark.parametrize("wrong", ["cut", "shape", "kind"])
def test_pieces_that_do_not_fit_are_refused(tmp_path, wrong):
    """Whole files, sums right, from a stranger."""
    strategy = DeepspeedStrategy(Zero(0))
    strategy.setup_distributed()
    engine = engine_of(strategy)
    steps(strategy, engine, 1)
    strategy.save_engine(engine, tmp_path, "engine_0")
    content = torch.load(tmp_path / "engine_0.0.pt", weights_only=True)
    name = next(iter(content["pieces"]))
    if wrong == "cut":
        content["pieces"][name]["start"] = 7
    elif wrong == "shape":
        content["pieces"][name]["exp_avg"] = content["pieces"][name]["exp_avg"][1:]
    else:
        content["pieces"] = [content["pieces"]]
    torch.save(content, tmp_path / "engine_0.0.pt")
    with pytest.raises(InputError, match="trains otherwise"):
        strategy.load_engine(engine, tmp_path, "engine_0")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("stage", range(3))
def test_an_engine_that_starts_over_repeats_itself(stage, bf16):
    strategy = DeepspeedStrategy(Zero(stage), Precision(bf16))
    strategy.setup_distributed()
    engine = engine_of(strategy)
    weights = {
        name: p.detach().float().clone() for name, p in engine_state.trainable(engine).items()
    }
    found = []
    for _ in range(2):
        engine_state.start_over(strategy, engine, weights, rate=1e-2)
        engine.lr_scheduler.last_epoch = 0
        found.append(steps(strategy, engine, 3))
    assert all(torch.equal(first, again) for first, again in zip(*found, strict=True))
