"""examples/score_dataset.py: every method writes its artefact, resumes, and refuses well."""

import re
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from launch import ROOT, deepspeed
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_world import make_model, make_rows, write_rows
from transformers import AutoModelForCausalLM

import seal
from seal.cli.flags import score_parser
from seal.cli.score_dataset import score
from seal.datasets import load_rows, tokenize_rows
from seal.errors import InputError
from seal.ids import folds_of, id_bytes
from seal.models.actor import ModelSettings, load_actor
from seal.selection import representation
from seal.selection.artefact import read_selection
from seal.selection.representation import PENALTIES
from seal.statistics import auroc
from seal.trainer.scorers import METHODS, relative_contrast
from seal.utils.tokenizer import get_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    safe, user = make_rows(12, seed=1), make_rows(30, seed=2)
    safe += [row | {"prompt": f"again {row['prompt']}"} for row in user[:15]]
    unsafe = [planted(row) for row in make_rows(24, seed=3)]
    return {
        "unsafe_dataset": write_rows(folder / "unsafe.jsonl", unsafe),
        "pretrain": make_model(folder / "model"),
        "dataset": write_rows(folder / "safe.jsonl", safe),
        "new_dataset": write_rows(folder / "user.jsonl", user),
        "selector_save_dir": folder / "ckpt",
        "train_batch_size": 8,
        "micro_train_batch_size": 2,
        "max_len": 96,
        "learning_rate": 3e-3,
        "tune_epochs": 2,
    }


def planted(row: dict) -> dict:
    """The row with digits in the response's place, as many as it has words."""
    return row | {"response": " ".join(str(len(word) * 7) for word in row["response"].split())}


def words(flags: dict) -> list[str]:
    given = [(f"--{name}", value) for name, value in flags.items()]
    return ["--overwrite"] + [
        str(word) for pair in given for word in (pair[:1] if pair[1] is True else pair)
    ]


def run(flags, **extra):
    flags = flags | {"selector_name": extra["method"]} | extra
    score(score_parser().parse_args(words(flags)))
    return read_selection(flags["selector_save_dir"] / f"{flags['selector_name']}.parquet")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_every_row(flags, method):
    found = run(flags, method=method)
    assert len(found) == 30 and found.meta["method"] == method
    assert np.isfinite(found.score).all() and len(np.unique(found.score)) > 20
    again = run(flags, method=method)  # finished parts are read, nothing is tuned again
    np.testing.assert_array_equal(again.score, found.score)


@pytest.mark.parametrize("method", ["relative_excess", "dsir", "probe"])
def test_seal_score_equals_the_script(flags, tmp_path, capsys, method):
    """Rows in memory, and in another schema, without a command line."""
    by_script = run(flags, method=method, selector_name=f"script_{method}")
    names = ("train_batch_size", "micro_train_batch_size", "max_len", "learning_rate")
    rest = {name: flags[name] for name in (*names, "tune_epochs", "unsafe_dataset")}
    rows = datasets.Dataset.from_json(str(flags["new_dataset"]))
    rows = rows.rename_columns({"prompt": "instruction", "response": "output"})
    for out in (tmp_path / "mine.parquet", tmp_path / "again.parquet"):
        pretrain, work = flags["pretrain"], tmp_path / "parts"  # the second finds finished parts
        safe, rest["work_dir"] = str(flags["dataset"]), work
        found = seal.score(rows, safe, method, pretrain=pretrain, out=out, **rest)
        np.testing.assert_array_equal(found.score, by_script.score)
        assert found.meta["dataset"]["scored"] == 30 and (found.id == by_script.id).all()
    with pytest.raises(InputError, match="exists; give another out, or overwrite=True"):
        seal.score(rows, safe, method, pretrain=pretrain, out=out, **rest)
    said = capsys.readouterr().out
    assert ("tuned for 4 optimizer steps only" in said) == (method == "relative_excess")
    with warnings.catch_warnings(action="error", category=UserWarning):  # has been said
        assert len(seal.select(rows, tmp_path / "mine.parquet", 0.5)) == 15


def test_seal_score_refuses_in_one_line(flags, tmp_path):
    needed = {"dataset": "u.jsonl", "safe": "s.jsonl", "method": "random", "pretrain": "M"}
    wrong = {"out": tmp_path / "a.csv"}, {"fold": 3}, {"folds": True}, {"max_len": 2}
    says = ".parquet, got", "did you mean folds", "takes text or a number", "at least 4 tokens"
    for extra, told in zip(wrong, says, strict=True):
        with pytest.raises(InputError, match=told):
            seal.score(**needed | {"out": tmp_path / "a.parquet"} | extra)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_scoring_tells_and_writes_nothing(flags, tmp_path, capsys):
    out = tmp_path / "out"
    dry = flags | {"selector_save_dir": out, "dry_run": 2, "method": "influence"}
    assert score(score_parser().parse_args(words(dry))) is None
    told = capsys.readouterr().out
    assert re.search(r"dry run of 16 rows: \S+ s, \S+ h for 30 rows; peak .* nothing was", told)
    assert not out.exists() and list(tmp_path.iterdir()) == []


def test_the_halves_of_a_pass_are_the_even_and_the_odd_tokens(flags):
    run(flags, method="perplexity")
    sums = np.load(flags["selector_save_dir"] / "perplexity_parts/start_0.npy")
    model = AutoModelForCausalLM.from_pretrained(flags["pretrain"])
    tokenizer = get_tokenizer(str(flags["pretrain"]))
    user = tokenize_rows(load_rows(str(flags["new_dataset"])), tokenizer, max_len=96)
    for row in (0, 7):
        batch = user.batch([row])
        logits = model(input_ids=batch.input_ids).logits[0, batch.positions]
        nll = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
        halves = [float(nll[half::2].sum()) for half in (0, 1)]
        np.testing.assert_allclose(sums[row], halves, rtol=1e-4)


@pytest.mark.parametrize("method", ["safe_loss", "excess_loss", "relative_excess"])
def test_rows_that_resemble_the_safe_set_rank_higher(flags, method):
    found = run(flags, method=method)
    resembles = found.row < 15
    assert auroc(found.score, resembles) > 0.6


def test_influence_is_the_inner_product_with_the_sign_of_the_safe_gradient(flags):
    found = run(flags, method="influence")
    drifted = flags["selector_save_dir"] / "influence_parts/drifted"
    actor, tokenizer = load_actor(ModelSettings(pretrain=str(drifted))), get_tokenizer(str(drifted))
    safe, user = (
        tokenize_rows(load_rows(str(flags[name])), tokenizer, max_len=96)
        for name in ("dataset", "new_dataset")
    )

    def gradient(rows, indices):
        batch = rows.batch(indices)
        shares = 1 / torch.from_numpy(rows.supervised[indices]).float() / len(indices)
        _, objective, _ = actor(batch, shares)
        return torch.autograd.grad(objective, list(actor.parameters()))

    signs = [g.sign() for g in gradient(safe, np.arange(len(safe)))]
    for row in (0, 17, 29):
        inner = sum(
            (g * s).sum() for g, s in zip(gradient(user, np.array([row])), signs, strict=True)
        )
        np.testing.assert_allclose(found.score[row], float(inner), rtol=0.02)


def test_two_ranks_and_zero_3_score_like_one_rank(flags):
    alone = run(flags, method="relative_excess")
    shared = flags | {"method": "relative_excess", "selector_name": "two", "zero_stage": 3}
    done = deepspeed(ROOT / "examples/score_dataset.py", *words(shared))
    assert done.status == 0, done.output[-2000:]
    two = read_selection(flags["selector_save_dir"] / "two.parquet")
    np.testing.assert_allclose(two.score, alone.score, atol=2e-3)


def test_a_method_over_states_finds_what_its_anchors_show(flags, tmp_path, capsys):
    rows = make_rows(40, seed=4)
    rows = [planted(row) if number % 4 == 0 else row for number, row in enumerate(rows)]
    user = write_rows(tmp_path / "user.jsonl", rows)
    extra = {"new_dataset": user, "work_dir": tmp_path / "parts"}
    for method in ("probe", "knn", "larf", "shift"):
        found = run(flags, method=method, selector_name=f"planted_{method}", **extra)
        assert auroc(found.score, found.row % 4 != 0) > 0.95
        evidence = found.meta["evidence"]
        anchors, low = evidence["anchors"], evidence["anchors"]["auroc_interval"][0]
        assert (anchors["safe"], anchors["unsafe"], anchors["layer"]) == (27, 24, 1)
        assert anchors["layers"] == [[1, anchors["auroc"]]] and low > 0.8
        assert anchors["curve"][-1] == [19, anchors["auroc"]] and evidence["reliability"] > 0.4
        # half of the two layers, over rows and anchors: the second method finds both passes done
        assert found.meta["forward_equivalents"] == round(0.5 * (40 + 27 + 24) / 40, 2)
    said = capsys.readouterr().out
    assert "layer 1: AUROC 1.000" in said and "from the halves of the anchors" in said
    assert said.count(f"taking up states_1 from {tmp_path / 'parts'}\n") == 3
    assert len(list((tmp_path / "parts").glob("*.npy"))) == 3


def test_what_is_unlike_the_safe_rows_is_found_without_a_known_bad_row(
    flags, tmp_path, capsys, monkeypatch
):
    rows = make_rows(60, seed=4)
    rows = [planted(row) if number % 4 == 0 else row for number, row in enumerate(rows)]
    user = write_rows(tmp_path / "user.jsonl", rows)
    own = {"method": "pu_probe", "new_dataset": user, "selector_name": "unlike"}
    safe = write_rows(tmp_path / "safe.jsonl", make_rows(40, seed=6))
    found = run(flags, **own, dataset=safe)
    assert auroc(found.score, found.row % 4 != 0) > 0.95 and found.meta["head"] is None
    assert found.meta["evidence"]["safe_above_rows"] < 0.8
    assert found.meta["forward_equivalents"] == round(0.5 * (60 + 40) / 60, 2)
    said = capsys.readouterr().out
    assert "AUROC of held-out safe rows against the rows: 0." in said
    assert "from the halves of the safe rows and the rows" in said and "told from" not in said

    monkeypatch.setattr(representation, "MOST_SHOWN", 20)  # of many rows some are shown
    some = run(flags, **(own | {"dataset": safe, "selector_name": "some"}))
    assert auroc(some.score, some.row % 4 != 0) > 0.9 and (some.score != found.score).any()
    monkeypatch.undo()
    run(flags, **(own | {"dataset": flags["unsafe_dataset"], "selector_name": "other_kind"}))
    assert "warning: most rows are told from the safe rows (AUROC 0." in capsys.readouterr().out
    few = write_rows(tmp_path / "few.jsonl", make_rows(19, seed=7))
    for name in ("dataset", "new_dataset"):
        with pytest.raises(InputError, match=f"--{name} holds 19 different rows; .* at least 20"):
            run(flags, **(own | {"dataset": safe, name: few}))


def test_a_smoothed_score_is_what_the_states_of_other_rows_predict(flags, tmp_path):
    shared = {"work_dir": tmp_path / "parts"}
    plain = run(flags, method="perplexity", selector_name="rough", **shared)
    found = run(flags, method="perplexity", selector_name="smooth", smooth=True, **shared)
    states = np.load(tmp_path / "parts/states_1_0.npy")[:, 0].reshape(30, -1)
    fold = folds_of(found.id, 5)
    for held in np.unique(fold):
        model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
        model.fit(states[fold != held], plain.score[fold != held])
        predicted = model.predict(states[fold == held])
        np.testing.assert_allclose(found.score[fold == held], predicted, rtol=1e-3)
    assert found.meta["forward_equivalents"] == 1.5 and found.meta["arguments"]["smooth"]
    chance = run(flags, method="random", selector_name="smooth_chance", smooth=True)
    assert chance.meta["model"] and chance.meta["evidence"]["reliability"] is None


def test_the_states_of_two_ranks_under_zero_3_are_those_of_one(flags):
    layer = {"method": "probe", "layer": 2}
    alone = run(flags, **layer, selector_name="alone")
    shared = flags | layer | {"selector_name": "both", "zero_stage": 3}
    done = deepspeed(ROOT / "examples/score_dataset.py", *words(shared))
    assert done.status == 0, done.output[-2000:]
    both = read_selection(flags["selector_save_dir"] / "both.parquet")
    np.testing.assert_allclose(both.score, alone.score, atol=1e-4)
    assert alone.meta["evidence"]["anchors"]["layer"] == 2


@pytest.mark.parametrize(
    "extra, says",
    [
        ({"unsafe_dataset": "planted_user"}, r"3 of 24 rows of --unsafe_dataset .* --new_dataset"),
        ({"canary_dataset": "unsafe", "canary_fraction": 0.9}, r"24 of 24 .* --canary_dataset"),
        ({"dataset": "unsafe"}, "24 of 24 rows of --dataset also stand in --unsafe_dataset"),
        ({"unsafe_dataset": "few"}, "19 different rows; .* at least 20"),
        ({"unsafe_dataset": "copies"}, "1 different rows; .* at least 20"),
        ({"dataset": "few"}, "--dataset holds 19 different"),
        ({"layer": 3}, "--layer 3: the model has layers 1 to 2"),
        ({"layer": 0, "method": "subspace"}, "--layer 0: the model has layers 1 to 2"),
        ({"unsafe_dataset": ""}, "--method probe needs --unsafe_dataset"),
    ],
)
def test_anchors_that_cannot_judge_are_refused(flags, tmp_path, extra, says):
    unsafe = [planted(row) for row in make_rows(24, seed=3)]
    sets = {
        "unsafe": unsafe,
        "planted_user": unsafe[:21] + make_rows(3, seed=2),
        "few": unsafe[:19],
        "copies": unsafe[:1] * 30,
    }
    paths = {name: write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in sets.items()}
    extra = {name: paths.get(value, value) for name, value in extra.items()}
    out = tmp_path / "out"
    with pytest.raises(InputError, match=says) as caught:
        run(flags, **{"method": "probe", "selector_save_dir": out} | extra)
    assert "\n" not in str(caught.value) and not out.exists()


def test_a_safe_set_that_is_the_users_rows_is_refused_and_a_shared_row_counted(
    flags, tmp_path, capsys
):
    out = {"selector_save_dir": tmp_path / "out"}
    few = write_rows(tmp_path / "few.jsonl", make_rows(9, seed=1))
    for extra, says in (
        ({"dataset": flags["new_dataset"]}, "30 of the 30 safe rows also stand in --new"),
        ({"new_dataset": few}, "9 of the 27 safe rows"),
    ):
        with pytest.raises(InputError, match=says):
            run(flags, method="dsir", **out | extra)
        assert not out["selector_save_dir"].exists()
    rows = make_rows(5, seed=2) + make_rows(12, seed=1)
    run(flags, method="dsir", dataset=write_rows(tmp_path / "both.jsonl", rows), **out)
    said = "warning: 5 of the 17 safe rows also stand in --new_dataset"
    assert capsys.readouterr().out.count(said) == 1
    run(flags, method="random", dataset=flags["new_dataset"], **out)


def test_ready_models_are_used_as_they_are(flags, tmp_path):
    start = flags["pretrain"]
    ready = {"safe_model": start, "rows_model": start}
    found = run(flags, method="excess_loss", selector_name="ready", **ready)
    assert np.abs(found.score).max() == 0.0


@pytest.mark.parametrize(
    "extra, says",
    [
        ({"method": "magic"}, "--method magic: known are random, dsir, .*, probe, .*[a-z]$"),
        ({"method": "relative_exces"}, r"did you mean relative_excess\?"),
        ({"method": "relative_excess", "folds": 1}, "at least 2"),
        ({"method": "safe_loss", "seed": 7}, "other"),
    ],
)
def test_bad_input_is_refused(flags, extra, says):
    if "seed" in extra:
        run(flags, method="safe_loss")
    with pytest.raises(InputError, match=says) as caught:
        run(flags, **extra)
    assert "\n" not in str(caught.value)


def test_parts_of_another_model_on_the_same_path_are_refused(flags, tmp_path):
    model = make_model(tmp_path / "model")
    run(flags, method="perplexity", selector_name="mine", pretrain=model)
    make_model(tmp_path / "model", seed=1)
    with pytest.raises(InputError, match="other pretrain's content"):
        run(flags, method="perplexity", selector_name="mine", pretrain=model)


def test_a_damaged_part_is_refused(flags):
    run(flags, method="perplexity", selector_name="damaged")
    part = flags["selector_save_dir"] / "damaged_parts/start_0.npy"
    part.write_bytes(part.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"start_0.npy does not read"):
        run(flags, method="perplexity", selector_name="damaged")


def test_the_ratio_does_not_take_hard_for_unsafe():
    """Same difference, other meaning: a hard row learned a little, an unsafe row learned wholly."""
    hard, unsafe = relative_contrast(np.array([1.6, 0.0]), np.array([2.2, 0.6]))
    assert unsafe < -1.9 and hard > -0.35


def test_copies_of_a_row_share_a_fold():
    ids = id_bytes(pa.array(["0a" * 16, "0b" * 16, "0a" * 16]))
    fold = folds_of(ids, 2)
    assert fold[0] == fold[2] and set(fold) <= {0, 1}
