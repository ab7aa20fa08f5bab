"""Models on disk: what a save leaves, what a start from an adapter does, where generation ends."""

import json

import pytest
import torch
from loaders import answer_of
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_world import make_model, make_rows, make_tokenizer, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from seal import command
from seal.assess.engine import HFEngine
from seal.assess.generation import Sampling
from seal.cli import flags
from seal.cli.train_sft_selector import prepare_models
from seal.datasets import load_rows, tokenize_rows
from seal.datasets.rendering import turn_end
from seal.errors import InputError
from seal.models.actor import TRACKER, ModelSettings, load_actor
from seal.utils.strategy import DeepspeedStrategy, Zero

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LORA = dict(lora_rank=4, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def strategy():
    strategy = DeepspeedStrategy(Zero(0))
    strategy.setup_distributed()
    return strategy


@pytest.fixture
def model(tmp_path):
    return str(make_model(tmp_path / "model"))


def make_adapter(model: str, folder, rank: int = 4) -> str:
    """An adapter that is not zero, on a model's directory."""
    base = AutoModelForCausalLM.from_pretrained(model)
    targets = ["q_proj", "v_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=16, target_modules=targets)
    adapted = get_peft_model(base, config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return str(folder)


def save(strategy, model: str, folder, **settings) -> set[str]:
    """Loads, prepares and saves a model; returns the names in the folder."""
    actor = load_actor(ModelSettings(pretrain=model, **settings))
    engine = strategy.prepare(actor, strategy.create_optimizer(actor, 1e-3, 0.0))
    strategy.save_model(engine, AutoTokenizer.from_pretrained(model), str(folder))
    engine.destroy()
    return {path.name for path in folder.iterdir()}


def test_a_save_leaves_nothing_of_another_kind_of_model(strategy, model, tmp_path):
    full = save(strategy, model, tmp_path / "full")
    adapter = save(strategy, model, tmp_path / "adapter", **LORA)
    assert "model.safetensors" in full and "adapter_config.json" in adapter
    both = tmp_path / "both"
    (both / "best").mkdir(parents=True)
    (both / "notes.txt").touch()
    for settings, expected in ((LORA, adapter), ({}, full), (LORA, adapter)):
        assert save(strategy, model, both, **settings) == expected | {"best", "notes.txt"}
        loaded = AutoModelForCausalLM.from_pretrained(both)
        assert any("lora" in name for name, _ in loaded.named_modules()) == bool(settings)
    (both / "model-00003-of-00003.safetensors").touch()
    assert "model-00003-of-00003.safetensors" not in save(strategy, model, both)


def test_an_adapter_is_not_saved_over_its_base(model):
    actor = load_actor(ModelSettings(pretrain=model, **LORA))
    actor.require_apart(None)
    actor.require_apart(model + "-tuned")
    with pytest.raises(InputError, match="base model"):
        actor.require_apart(model)
    load_actor(ModelSettings(pretrain=model)).require_apart(model)


def test_settings_are_saved_as_the_base_had_them(strategy, model, tmp_path):
    def config(folder):
        return json.loads((folder / "config.json").read_text())

    save(strategy, model, tmp_path / "out", gradient_checkpointing=True)
    before, after = config(tmp_path / "model"), config(tmp_path / "out")
    assert before["use_cache"] and before == after


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_tuned_model_ends_where_the_template_s_turn_ends(strategy, tmp_path, kind):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    model = make_model(tmp_path / "model", tokenizer=tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end(tokenizer) == end
    actor = load_actor(ModelSettings(pretrain=str(model), **(LORA if kind == "adapter" else {})))
    actor.end_at(end)
    engine = strategy.prepare(actor, strategy.create_optimizer(actor, 1e-3, 0.0))
    strategy.save_model(engine, tokenizer, str(tmp_path / "out"))
    engine.destroy()
    saved = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert saved["eos_token_id"] == [tokenizer.eos_token_id, end]
    untouched = AutoModelForCausalLM.from_pretrained(model)
    assert untouched.generation_config.eos_token_id == tokenizer.eos_token_id
    assert end in HFEngine(untouched, tokenizer, Sampling()).model.generation_config.eos_token_id


def test_templates_without_a_special_marker_name_no_end():
    tokenizer = make_tokenizer()
    assert turn_end(tokenizer) == tokenizer.eos_token_id
    for template in (None, "{{ messages[0].content }}", "{{ raise_exception('no') }}"):
        tokenizer.chat_template = template
        assert turn_end(tokenizer) is None


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_gap_from_an_adapter_trains_a_tracker_and_ships_the_model(
    strategy, model, tmp_path, lora_rank
):
    adapter = make_adapter(model, tmp_path / "adapter")
    data = write_rows(tmp_path / "rows.jsonl", make_rows(6))
    words = f"--pretrain {adapter} --dataset {data} --new_dataset {data} --lora_rank {lora_rank}"
    args = flags.selector_parser().parse_args(
        f"{words} --selector_estimator penalty_gap --max_len 96 --lr_scheduler constant".split()
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = tokenize_rows(load_rows(str(data)), tokenizer, max_len=96)
    level, tracker = prepare_models(args, strategy, rows, steps=1)
    assert tracker.engine is level.engine
    actor = tracker.engine.module
    before = [p.detach().clone() for p in actor.parameters_of(TRACKER)]
    assert before
    shares = torch.full((len(rows),), 1.0)
    for one in (level, tracker):
        one.backward(torch.arange(len(rows)).numpy(), shares)
    strategy.step(tracker.engine)
    moved = zip(actor.parameters_of(TRACKER), before, strict=True)
    assert all((now - then).abs().max() > 0 for now, then in moved)
    strategy.save_model(level.engine, tokenizer, str(tmp_path / "out"))
    assert not any(path.is_dir() for path in (tmp_path / "out").iterdir())
    state = load_file(tmp_path / "out/adapter_model.safetensors")
    assert state.keys() == load_file(tmp_path / "adapter/adapter_model.safetensors").keys()
    base = AutoModelForCausalLM.from_pretrained(model)
    assert PeftModel.from_pretrained(base, tmp_path / "out").peft_config["default"].r == 4
    answer_of(tmp_path / "out", trl=False)


def test_an_unknown_adapter_is_never_run(model):
    actor = load_actor(ModelSettings(pretrain=model, **LORA))
    with pytest.raises(ValueError, match="no adapter tracker"):
        actor.use_adapter(TRACKER)


@pytest.mark.parametrize(("flag", "value"), [("lora_rank", 8), ("lora_alpha", 32)])
def test_lora_flags_that_an_adapter_contradicts_are_refused(model, tmp_path, flag, value):
    adapter = make_adapter(model, tmp_path / "adapter")
    settings = {"lora_rank": 4, flag: value}
    with pytest.raises(InputError, match=f"{flag} {value}"):
        load_actor(ModelSettings(pretrain=adapter, **settings))
    actor = load_actor(ModelSettings(pretrain=adapter, lora_rank=4))
    assert "adapter" in " ".join(actor.notes)


def test_an_adapter_with_new_tokens_is_merged_and_gone_on_with(strategy, model, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model)
    base.resize_token_embeddings(base.config.vocab_size + 4)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        init_lora_weights=False,
    )
    adapted = get_peft_model(base, config).eval()
    adapted.peft_config["default"].base_model_name_or_path = model
    adapted.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(base.config.vocab_size - 20, base.config.vocab_size)[None]
    expected = adapted(tokens).logits
    command.main(["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(tokens).logits, expected)
    actor = load_actor(ModelSettings(pretrain=str(tmp_path / "adapter"))).eval()
    actor.causal.set_attn_implementation("eager")
    torch.testing.assert_close(actor.model(tokens, use_cache=False).logits, expected)


@pytest.mark.parametrize("fault", ["missing", "cut", "other", "kind"])
def test_a_bad_adapter_is_refused_in_one_line(model, tmp_path, fault):
    adapter = tmp_path / "adapter"
    make_adapter(model, adapter)
    weights = adapter / "adapter_model.safetensors"
    if fault == "missing":
        weights.unlink()
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "other":
        make_adapter(model, tmp_path / "wide", rank=8)
        weights.write_bytes((tmp_path / "wide" / weights.name).read_bytes())
    else:
        config = json.loads((adapter / "adapter_config.json").read_text())
        config |= {"peft_type": "IA3"}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="adapter") as refused:
        load_actor(ModelSettings(pretrain=str(adapter)))
    assert "\n" not in str(refused.value)
