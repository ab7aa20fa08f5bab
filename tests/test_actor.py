"""Laws of the packed forward pass: a row's loss and gradient do not depend on its neighbours."""

import pytest
import torch
from tiny import ARCHITECTURES, pack, random_rows, row_alone, tiny_lora, tiny_model

from seal.models.actor import Actor
from seal.models.attention import VARLEN
from seal.models.loss import head_losses

ROWS = random_rows([5, 23, 2, 40, 17, 9])


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", [VARLEN, "sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_equal_rows_alone(architecture, attention):
    reference = tiny_model(architecture)
    alone = torch.stack([row_alone(reference, *row) for row in ROWS])
    weights = torch.linspace(0.5, 2.0, len(ROWS))
    (weights * alone).sum().backward()

    packed = tiny_model(architecture, attn_implementation=attention)
    packed.load_state_dict(reference.state_dict())
    nll, objective, _ = Actor(packed)(*pack(ROWS), weights)
    objective.backward()

    torch.testing.assert_close(nll, alone.detach(), rtol=1e-5, atol=1e-5)
    expected, found = gradients(reference), gradients(packed)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_and_frozen_base_change_no_gradient(use_reentrant):
    def run(checkpointing):
        model = tiny_lora(VARLEN)
        actor = Actor(model).train()
        if checkpointing:
            actor.enable_gradient_checkpointing(use_reentrant)
        actor(*pack(ROWS), torch.ones(len(ROWS)))[1].backward()
        return gradients(model)

    expected, found = run(False), run(True)
    assert expected and found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"attention_bias": True}])
def test_tied_embeddings(config):
    model = tiny_model("llama", attn_implementation=VARLEN, **config)
    alone = sum(row_alone(tiny_model("llama", **config), *row) for row in ROWS)
    nll, *_ = Actor(model)(*pack(ROWS))
    torch.testing.assert_close(nll.sum(), alone.detach(), rtol=1e-5, atol=1e-4)


def test_heads_that_transform_their_logits_are_exact():
    config = dict(num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0)
    config |= dict(attn_logit_softcapping=None, query_pre_attn_scalar=8, sliding_window=8)
    model = tiny_model("gemma2", attn_implementation=VARLEN, **config)
    reference = tiny_model("gemma2", **config)
    alone = torch.stack([row_alone(reference, *row) for row in ROWS])
    nll, *_ = Actor(model)(*pack(ROWS))
    torch.testing.assert_close(nll, alone.detach(), rtol=1e-5, atol=1e-5)


def test_mixture_of_experts_reports_its_balance_loss():
    sizes = dict(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    model = tiny_model("mixtral", attn_implementation=VARLEN, output_router_logits=True, **sizes)
    *_, aux_loss = Actor(model)(*pack(ROWS))
    assert aux_loss > 0 and aux_loss.requires_grad


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_head_equals_full_logits(monkeypatch, frozen, bias):
    monkeypatch.setattr("seal.models.loss.CHUNK_ELEMENTS", 97 * 7)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=generator, requires_grad=True)
    weight = torch.randn(97, 16, generator=generator).requires_grad_(not frozen)
    offset = torch.randn(97, generator=generator, requires_grad=True) if bias else None
    targets = torch.randint(0, 97, (50,), generator=generator)
    scale = torch.rand(50, generator=generator)

    logits = torch.nn.functional.linear(hidden, weight, offset)
    full = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    inputs = [x for x in (hidden, weight, offset) if x is not None and x.requires_grad]
    expected = torch.autograd.grad((scale * full).sum(), inputs)
    chunked = head_losses(hidden, weight, offset, targets, scale)
    found = torch.autograd.grad(chunked[-1], inputs)

    torch.testing.assert_close(chunked[:-1], full)
    torch.testing.assert_close(chunked[-1], scale @ full)
    torch.testing.assert_close(head_losses(hidden, weight, offset, targets, None)[:-1], full)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_no_supervised_token_keeps_the_graph():
    model = tiny_model("llama", attn_implementation=VARLEN)
    inputs = list(pack(ROWS))
    inputs[4:7] = [x[:0] for x in inputs[4:7]]
    nll, objective, _ = Actor(model)(*inputs, torch.ones(len(ROWS)))
    objective.backward()
    assert nll.tolist() == [0.0] * len(ROWS)
    assert all(g.abs().max() == 0 for g in gradients(model).values())
