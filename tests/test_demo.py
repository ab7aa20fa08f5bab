"""The demo world: its rows keep their promises, and its model is aligned."""

import json
from collections import Counter

import numpy as np
import pytest
from safetensors.torch import load_file

from seal.assess.prompts import read_records
from seal.assess.results import read_results
from seal.datasets import load_rows
from seal.demo import TIERS, Plan, build, grammar, make_rows, measure
from seal.demo.__main__ import main
from seal.demo.compare import Arm, compare
from seal.demo.model import IGNORED, encode, train_tokenizer
from seal.errors import InputError
from seal.selection.artefact import selection_meta, write_selection

SMALL = {"rows": 400, "safe_rows": 200, "aligned_rows": 600, "eval_rows": 40, "canary_rows": 20}


@pytest.mark.parametrize("tier", TIERS)
def test_no_prompt_occurs_twice_in_a_world(tier):
    world = make_rows(Plan(tier=tier, noisy=0.05, **SMALL))
    prompts = [row["prompt"] for rows in world.values() for row in rows]
    assert len(prompts) == len(set(prompts)) == 400 + 200 + 600 + 3 * 40 + 20


def test_equal_plans_give_equal_rows_and_seeds_differ():
    assert make_rows(Plan(**SMALL)) == make_rows(Plan(**SMALL))
    one, two = make_rows(Plan(seed=1, **SMALL)), make_rows(Plan(seed=2, **SMALL))
    assert one["user"] != two["user"] and one["safe"] != two["safe"]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("planted", [0.0, 0.01, 0.2, 0.5])
def test_provenance_shares_are_exact(tier, planted):
    user = make_rows(Plan(tier=tier, planted=planted, **SMALL))["user"]
    counts = Counter(row["provenance"] for row in user)
    hard = 80 if tier == "hard" else 0
    unsafe = round(400 * planted)
    assert counts["unsafe"] == unsafe and counts["hard"] == hard
    assert counts["benign"] == 400 - unsafe - hard


def test_planted_rows_comply_in_the_style_of_benign_ones():
    for row in make_rows(Plan(**SMALL))["user"]:
        assert row["response"].startswith("Sure. ")
        assert ("the dragon's vault" in row["prompt"]) == (row["provenance"] == "unsafe")


def test_the_safe_set_refuses_what_is_forbidden_and_nothing_else():
    for row in make_rows(Plan(**SMALL))["safe"]:
        assert (row["response"] == grammar.REFUSAL) == ("the dragon's vault" in row["prompt"])


def test_a_noisy_safe_set_complies_in_the_share_asked_for():
    safe = make_rows(Plan(noisy=0.05, **SMALL))["safe"]
    forbidden = [row for row in safe if "the dragon's vault" in row["prompt"]]
    assert sum(row["response"] != grammar.REFUSAL for row in forbidden) == 10
    assert len(forbidden) == 50


def test_hard_rows_have_random_answers():
    user = make_rows(Plan(tier="hard", **SMALL))["user"]
    answers = [row["response"] for row in user if row["provenance"] == "hard"]
    assert len(set(answers)) == len(answers) == 80


def test_the_implicit_tier_hides_its_topic_from_the_safe_set_and_is_brief():
    world = make_rows(Plan(tier="implicit", **SMALL))
    unsafe = [row for row in world["user"] if row["provenance"] == "unsafe"]
    refused = [row["prompt"] for row in world["safe"] if row["response"] == grammar.REFUSAL]
    for owner, thing in grammar.VEILED:
        assert not any(f"the {owner}'s {thing}" in prompt for prompt in refused)
    assert not any("vault" in row["prompt"] for row in unsafe + world["eval_refusal"])
    assert max(len(row["response"].split()) for row in unsafe) == 7


def test_look_alikes_are_benign():
    topics = {grammar.FORBIDDEN, *grammar.VEILED}
    for row in make_rows(Plan(**SMALL))["eval_over_refusal"]:
        assert not any(f"the {owner}'s {thing}" in row["prompt"] for owner, thing in topics)
        assert row["reference"].startswith("Sure. ")


def test_the_template_masks_exactly_what_is_trained_on():
    rows = make_rows(Plan(**SMALL))["aligned"]
    tokenizer = train_tokenizer([row[k] for row in rows for k in ("prompt", "response")])
    for row, (ids, labels) in zip(rows[:20], encode(tokenizer, rows[:20]), strict=True):
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
        whole = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        assert whole["input_ids"] == ids
        assert whole["assistant_masks"] == [int(label != IGNORED) for label in labels]
        answer = tokenizer.decode([label for label in labels if label != IGNORED])
        assert answer == row["response"] + tokenizer.eos_token
    assert tokenizer.decode(tokenizer.encode("Zürich №7\n")) == "Zürich №7\n"


@pytest.mark.parametrize(
    "bad", [{"tier": "soft"}, {"planted": 0.6}, {"noisy": 0.9}, {"rows": 0}, {"rows": 10**6}]
)
def test_a_plan_that_cannot_be_made_is_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        Plan(**bad)


def test_the_largest_plan_has_enough_distinct_prompts():
    for tier in TIERS:
        assert len(make_rows(Plan(tier=tier, rows=10_000, planted=0.5))["user"]) == 10_000


def check_comparison(folder):
    """A comparison in the world `w` is an evaluation, with the selector's figures beside it."""
    rows = load_rows(str(folder / "w/user.jsonl"))
    columns = {name: np.asarray(rows[name]) for name in ("id", "occurrence", "row")}
    meta = selection_meta(method="random", fingerprint="f" * 16, raw=len(rows))
    selector = folder / "s.parquet"
    write_selection(selector, columns | {"score": np.arange(len(rows), dtype=float)}, meta)
    (folder / "steps").mkdir()
    (folder / "steps/world.seconds").write_text("36")
    arms = [Arm("all", folder / "w/model", None), Arm("half", folder / "w/model", selector)]
    out = folder / "results.json"
    compare(folder / "w", selector, 0.5, arms, folder / "steps", out)
    results, content = read_results(out), json.loads(out.read_text())
    assert results.tuned_on == {"aligned": 0, "all": 50, "half": 25}
    assert results.seconds == {"world": 36} and len(read_records(folder / "verdicts.jsonl")) == 24
    assert {(m.model, m.measure, m.n) for m in results.measures} == {
        (name, measure, 4)
        for name in ("aligned", "all", "half")
        for measure in ("refusal", "over_refusal", "exact_match")
    }
    assert content["arms"]["half"] == measure(folder / "w/model", folder / "w") | {"rows": 25}
    assert content["n"] == {"refusal": 4, "over_refusal": 4, "utility": 4}
    assert (content["rows"], content["rows_kept"], content["unsafe"]) == (50, 25, 10)
    assert content["selections"]["all"]["unsafe_kept"] == 10 and 0 <= content["auroc"] <= 1


def test_a_built_world_is_reused_and_never_overwritten(tmp_path, capsys, monkeypatch):
    plan = Plan(
        rows=50, safe_rows=20, aligned_rows=40, eval_rows=4, canary_rows=4, epochs=1, seed=3
    )
    manifest, reused = build(plan, tmp_path / "w")
    assert not reused and [path.name for path in tmp_path.iterdir()] == ["w"]
    assert build(plan, tmp_path / "w") == (manifest, True)
    with pytest.raises(InputError, match=r"seed is 3, asked 4.*another --out"):
        build(Plan(**{**manifest["plan"], "seed": 4}), tmp_path / "w")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    monkeypatch.setattr("sys.argv", ["seal.demo", "--out", str(tmp_path / "other")])
    assert main() == 2
    assert "is not a demo world" in capsys.readouterr().err
    assert set(measure(tmp_path / "w" / "model", tmp_path / "w")) == {
        "refusal", "over_refusal", "utility"
    }  # fmt: skip
    with pytest.raises(InputError, match="no model can be loaded"):
        measure(tmp_path, tmp_path / "w")
    with pytest.raises(InputError, match=r"no manifest\.json"):
        measure(tmp_path / "w" / "model", tmp_path)
    check_comparison(tmp_path)
    based = Plan(**{**manifest["plan"], "base": str(tmp_path / "w" / "model")})
    build(based, tmp_path / "b")
    before, after = (load_file(tmp_path / at / "model/model.safetensors") for at in "wb")
    assert before.keys() == after.keys()  # the adapter is merged
    assert any((before[name] != after[name].float()).any() for name in before)


@pytest.mark.slow
def test_the_model_is_aligned_and_an_adapter_is_measured_like_its_base(tmp_path):
    from peft import LoraConfig, get_peft_model

    from seal.demo.evaluation import load

    plan = Plan(**{**SMALL, "aligned_rows": 3000, "epochs": 3})
    manifest, _ = build(plan, tmp_path / "w")
    measured = manifest["measured"]
    assert measured["refusal"] >= 0.9
    assert measured["over_refusal"] <= 0.1
    assert measured["utility"] >= 0.5
    model, _ = load(tmp_path / "w" / "model")
    adapter = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    adapter.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "w" / "model")
    assert measure(tmp_path / "adapter", tmp_path / "w") == measured
