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
    nll, objective, _ = Actor(packed)(pack(ROWS), weights)
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
        actor(pack(ROWS), torch.ones(len(ROWS)))[1].backward()
        return gradients(model)

    expected, found = run(False), run(True)
    assert expected and found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"attention_bias": True}])
def test_tied_embeddings(config):
    model = tiny_model("llama", attn_implementation=VARLEN, **config)
    alone = sum(row_alone(tiny_model("llama", **config), *row) for row in ROWS)
    nll, *_ = Actor(model)(pack(ROWS))
    torch.testing.assert_close(nll.sum(), alone.detach(), rtol=1e-5, atol=1e-4)


CAPPED = dict(num_key_value_heads=2, head_dim=8, attn_logit_softcapping=None, sliding_window=8)
CAPPED |= dict(query_pre_attn_scalar=8, final_logit_softcapping=0.3)
TRANSFORMED = {
    "gemma2": CAPPED,
    "cohere": dict(num_key_value_heads=2, logit_scale=0.25),
    "granite": dict(num_key_value_heads=2, logits_scaling=0.1),
}


@pytest.mark.parametrize("architecture", TRANSFORMED)
def test_heads_that_transform_their_logits_are_exact(architecture):
    config = TRANSFORMED[architecture]
    reference = tiny_model(architecture, **config)
    alone = torch.stack([row_alone(reference, *row) for row in ROWS])
    alone.sum().backward()
    model = tiny_model(architecture, attn_implementation=VARLEN, **config)
    nll, objective, _ = Actor(model)(pack(ROWS), torch.ones(len(ROWS)))
    objective.backward()
    torch.testing.assert_close(nll, alone.detach(), rtol=1e-5, atol=1e-5)
    expected, found = gradients(reference), gradients(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5, msg=name)


def test_lora_on_the_head_is_exact():
    targets = ("q_proj", "lm_head")
    actor, reference = Actor(tiny_lora(VARLEN, targets)), tiny_lora("eager", targets)
    alone = torch.stack([row_alone(reference, *row) for row in ROWS])
    nll, *_ = actor(pack(ROWS))
    assert actor.head is None
    torch.testing.assert_close(nll, alone.detach(), rtol=1e-5, atol=1e-5)


def test_mixture_of_experts_reports_its_balance_loss():
    sizes = dict(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    model = tiny_model("mixtral", attn_implementation=VARLEN, **sizes)
    batch = pack(ROWS[:1])
    *_, aux_loss = Actor(model, balance=True)(batch)
    model.set_attn_implementation("eager")
    expected = model(input_ids=batch.input_ids, output_router_logits=True).aux_loss
    torch.testing.assert_close(aux_loss, expected)
    assert aux_loss.requires_grad


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt_neox"])
def test_states_of_a_layer_are_the_models_own(architecture):
    model = tiny_model(architecture, attn_implementation=VARLEN).eval()
    reference = tiny_model(architecture).eval()
    actor, batch = Actor(model), pack(ROWS)
    for layer in (1, actor.n_layers):
        found = actor(batch, layers=[layer])[0]
        for (tokens, _), start in zip(ROWS, batch.cu_seqlens.tolist(), strict=False):
            alone = reference(input_ids=tokens[None], output_hidden_states=True, use_cache=False)
            states = alone.hidden_states[layer][0]
            torch.testing.assert_close(found[start : start + len(tokens)], states)
    calls = []
    actor.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    actor._layers()[2][1].register_forward_hook(lambda *_: calls.append(1))
    actor(batch, layers=[1])
    assert not calls, "nothing above the layer runs"


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
    nll, objective = head_losses(hidden, weight, offset, targets, scale)
    found = torch.autograd.grad(objective, inputs)

    torch.testing.assert_close(nll, full)
    torch.testing.assert_close(objective, scale @ full)
    torch.testing.assert_close(head_losses(hidden, weight, offset, targets, None)[0], full)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_no_supervised_token_keeps_the_graph():
    model = tiny_model("llama", attn_implementation=VARLEN)
    batch = pack(ROWS)
    empty = {name: getattr(batch, name)[:0] for name in ("positions", "targets", "segments")}
    nll, objective, _ = Actor(model)(batch._replace(**empty), torch.ones(len(ROWS)))
    objective.backward()
    assert nll.tolist() == [0.0] * len(ROWS)
    assert all(g.abs().max() == 0 for g in gradients(model).values())
