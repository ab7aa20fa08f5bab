"""Laws on the device that is there: a GPU where there is one, otherwise the CPU.

In one process, without the launcher, so that a minute on a GPU is enough. In float32 plain torch on
the CPU says what a run must give; in bf16 it may differ by a few per cent.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws_driver import Case, run_case
from plain_torch import plain_torch
from test_laws import deviations, difference, under
from tiny_world import make_model

from seal.models.attention import varlen_attention

pytestmark = pytest.mark.slow
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAYS = list(product((0, 2, 3), (False, True), ("", "plain")))  # ZeRO, LoRA, checkpointing


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny model whose queries share keys and values."""
    return str(make_model(tmp_path_factory.mktemp("model"), num_key_value_heads=2))


def results(case: Case, out) -> dict[str, np.ndarray]:
    """What a run leaves behind."""
    run_case(case, out)
    return dict(np.load(out / f"{case.name}.npz"))


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("heads, kv_heads, size", [(4, 4, 64), (4, 1, 128), (6, 2, 40)])
def test_the_kernel_attends_within_each_row(heads, kv_heads, size, window):
    lengths = [1, 300, 2, 129, 64, 7]
    torch.manual_seed(0)
    shapes = [(1, n, sum(lengths), size) for n in (heads, kv_heads, kv_heads)]
    exact = [torch.randn(shape, requires_grad=True) for shape in shapes]
    low = [x.detach().to(DEVICE, torch.bfloat16).requires_grad_() for x in exact]
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=DEVICE)
    found, _ = varlen_attention(
        None, *low, None, scaling=0.1, sliding_window=window, cu_seq_lens_q=starts, max_length_q=300
    )
    rows = []
    for row in zip(*(x.split(lengths, dim=2) for x in exact), strict=True):
        at = torch.arange(row[0].shape[2])
        behind = at[:, None] - at
        mask = (behind >= 0) & (behind < (window or len(at)))
        rows.append(
            F.scaled_dot_product_attention(*row, attn_mask=mask, scale=0.1, enable_gqa=True)
        )
    expected = torch.cat(rows, dim=2).transpose(1, 2)
    slope = torch.randn(expected.shape)
    expected.backward(slope)
    found.backward(slope.to(found))
    pairs = [(found, expected), *((a.grad, b.grad) for a, b in zip(low, exact, strict=True))]
    for value, reference in pairs:
        error = (value.detach().cpu().float() - reference).norm() / reference.norm()
        assert error < 0.01, error


@pytest.mark.parametrize("lora", [False, True])
def test_float32_is_plain_torch_s(model, tmp_path, lora):
    case = Case("float32", model, stage=2, lora=lora, checkpointing="plain")
    for kind, found in deviations(case, results(case, tmp_path), ranks=1).items():
        assert found < (1e-5 if kind == "weights" else 1e-4), kind


def test_bf16_agrees_to_a_few_per_cent_in_every_way(model, tmp_path):
    expected = {}
    for stage, lora, checkpointing in WAYS:
        case = Case("bf16", model, stage=stage, lora=lora, checkpointing=checkpointing, bf16=True)
        found = results(case, tmp_path)
        start = lora, stage == 3  # which draws an adapter's weights elsewhere
        if start not in expected:
            expected[start] = plain_torch(replace(case, bf16=False), under(found, "initial"), 1)
        reference, name = expected[start], f"ZeRO {stage}, LoRA {lora}, {checkpointing}"
        for metric in ("safe_loss", "row_loss"):
            losses = found[f"metric/train/{metric}"]
            np.testing.assert_allclose(
                losses, reference["metrics"][metric], rtol=0.03, err_msg=name
            )
        moved = difference(reference["final"], under(found, "initial"))
        assert difference(under(found, "final"), reference["final"]) < 0.1 * moved, name


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU")
@pytest.mark.parametrize("lora", [False, True])
def test_liger_s_blocks_agree_to_a_few_per_cent(model, tmp_path, lora):
    pytest.importorskip("liger_kernel", reason="needs liger-kernel")
    case = Case("liger", model, lora=lora, bf16=True, liger=True)
    found = results(case, tmp_path)
    reference = plain_torch(replace(case, bf16=False), under(found, "initial"), 1)
    moved = difference(reference["final"], under(found, "initial"))
    assert difference(under(found, "final"), reference["final"]) < 0.1 * moved


@pytest.mark.parametrize("trainer, stage, lora", [("selector", 2, True), ("sft", 3, False)])
def test_a_resumed_run_goes_on_as_the_first(model, tmp_path, trainer, stage, lora):
    """Bit for bit on a CPU; a GPU adds in no fixed order."""
    case = Case("resumed", model, trainer=trainer, stage=stage, lora=lora, adamw=True, rate=0.01)
    found = results(replace(case, resume_at=2), tmp_path)
    final = under(found, "final")
    moved, apart = (difference(final, under(found, name)) for name in ("initial", "resumed"))
    assert apart == 0 if DEVICE == "cpu" else apart < 0.05 * moved
