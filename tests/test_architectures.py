"""Law of the probe: every architecture gives each row the loss it has alone, or is refused."""

import sys

import pytest
import torch
import transformers
from launch import ROOT
from tiny import pack, random_rows, row_alone, tiny_model

from seal.errors import InputError
from seal.models.actor import Actor, ModelSettings, load_actor
from seal.models.attention import VARLEN, kernel_takes, varlen_attention
from seal.models.probe import settle

sys.path.append(str(ROOT / "benchmarks"))

from architectures import ARCHITECTURES, ATTENTIONS, LIMIT, make, measure

REFUSED = {"bert"}  # not causal
SLOWER = {"falcon_h1", "gemma2", "gpt_oss", "mamba", "rwkv", "lfm2", "bloom", "falcon", "minimax"}


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity_warning()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_have_the_loss_that_they_have_alone(name, tmp_path):
    make(name, tmp_path)
    for attention in ATTENTIONS:
        found = measure(name, tmp_path, attention)
        if found.how == "refused":  # sdpa on request, where transformers has none
            assert name in REFUSED or (attention == "sdpa" and "does not support" in found.said)
            assert "\n" not in found.said
            continue
        assert name not in REFUSED and found.off < LIMIT, (attention, found)
        if name in SLOWER and attention is None:
            assert found.how == "padded", attention


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_are_kept_apart_in_half_precision_too(name, tmp_path):
    make(name, tmp_path)
    how = []
    for bf16 in (False, True):
        actor = load_actor(ModelSettings(pretrain=str(tmp_path), bf16=bf16))
        try:
            settle(actor, actor)
            how.append((actor.packed, actor.fused))
        except InputError:
            how.append("refused")
    assert how[0] == how[1]


@pytest.mark.parametrize("name", ["gemma2", "falcon", "lfm2"])
def test_padded_rows_have_the_gradients_of_rows_alone(name):
    config = ARCHITECTURES[name]
    rows = random_rows([5, 23, 2, 17])
    reference = tiny_model(name, **config).eval()
    weights = torch.linspace(0.5, 2.0, len(rows))
    (weights * torch.stack([row_alone(reference, *row) for row in rows])).sum().backward()
    model = tiny_model(name, **config).eval()
    actor = Actor(model, packed=False)
    settle(actor, actor)
    actor(pack(rows), weights)[1].backward()
    for (key, one), two in zip(reference.named_parameters(), model.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=2e-5, msg=key)


def test_states_of_padded_rows_are_the_models_own():
    model = tiny_model("lfm2", **ARCHITECTURES["lfm2"]).eval()
    rows = random_rows([5, 23, 2])
    actor, batch = Actor(model, packed=False), pack(rows)
    found = actor(batch, layers=[1])[0]
    for (tokens, _), start in zip(rows, batch.cu_seqlens.tolist(), strict=False):
        alone = model(input_ids=tokens[None], output_hidden_states=True, use_cache=False)
        states = alone.hidden_states[1][0]
        torch.testing.assert_close(found[start : start + len(tokens)], states)


@pytest.mark.parametrize(
    "bf16, far, packed", [(True, 3, True), (True, 15, False), (False, 1, False)]
)
def test_a_few_tokens_may_round_far_in_half_precision(bf16, far, packed):
    model = tiny_model("llama", attn_implementation=VARLEN)
    actor = Actor(model.bfloat16() if bf16 else model)

    def rounded(batch, **wanted):
        found = actor(batch, **wanted)
        if wanted and actor.packed:
            found[:, :far] *= 1.2
        return found

    assert ("rows packed" in settle(actor, rounded)) == packed


def test_a_deep_model_in_bf16_is_packed_and_a_leak_in_it_is_found():
    sizes = dict(num_hidden_layers=32, hidden_size=256, intermediate_size=512)
    model = tiny_model("llama", attn_implementation=VARLEN, **sizes).bfloat16()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)  # as if 4096 states wide
    actor = Actor(model)
    assert "rows packed, torch varlen" in settle(actor, actor)
    leaking = actor.forward
    actor.forward = lambda batch, *rest, **options: leaking(
        batch._replace(cu_seqlens=batch.cu_seqlens[[0, -1]], max_seqlen=len(batch.input_ids[0])),
        *rest,
        **options,
    )
    with pytest.raises(InputError, match="depends on the row beside it"):
        settle(actor, actor)


def test_a_head_that_the_fused_loss_does_not_know_is_run_whole():
    model = tiny_model("llama", attn_implementation=VARLEN)
    actor = Actor(model)
    actor.head.scale = 2.0
    assert "whole logits" in settle(actor, actor)
    assert not actor.fused


@pytest.mark.parametrize("name", ["s_aux", "softcap", "position_bias", "is_causal"])
def test_attention_refuses_what_it_does_not_know(name):
    query = torch.zeros(1, 2, 3, 8)
    starts = torch.tensor([0, 3], dtype=torch.int32)
    given = {"cu_seq_lens_q": starts, "max_length_q": 3}
    varlen_attention(None, query, query, query, None, **given, **{name: None})
    value = False if name == "is_causal" else torch.ones(2)
    with pytest.raises(InputError, match=name):
        varlen_attention(None, query, query, query, None, **given, **{name: value})


@pytest.mark.parametrize(
    ("heads", "dtype", "dropout", "capability", "takes"),
    [
        ((128, 128), torch.bfloat16, 0.0, (9, 0), True),
        ((128, 128), torch.bfloat16, 0.0, (7, 5), False),
        ((256, 256), torch.float16, 0.0, (9, 0), True),
        ((256, 256), torch.float16, 0.0, (8, 9), False),
        ((512, 512), torch.bfloat16, 0.0, (9, 0), False),
        ((100, 100), torch.bfloat16, 0.0, (9, 0), False),
        ((192, 128), torch.bfloat16, 0.0, (9, 0), False),
        ((64, 64), torch.float32, 0.0, (9, 0), False),
        ((64, 64), torch.bfloat16, 0.1, (9, 0), False),
    ],
)
def test_the_kernel_is_asked_within_its_limits(heads, dtype, dropout, capability, takes):
    assert kernel_takes(*heads, dtype, dropout, capability) == takes
