"""Laws of generation: order and count, invariance to batch and rank, resuming, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from test_assess_server import BROKEN, MODEL, serve
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seal.assess.answers import Answer, Parts, read_answers
from seal.assess.engine import HFEngine, SeededSampler, generate, load_model
from seal.assess.generation import (
    Alone,
    Job,
    Sampling,
    Template,
    batches_of,
    prompt_seeds,
    share_of,
)
from seal.assess.prompts import read_prompts, read_records
from seal.assess.rendering import encode_pairs, encode_prompts
from seal.assess.verdicts import spoken
from seal.cli import batch_inference
from seal.errors import InputError
from seal.utils import entry

ROOT = Path(__file__).resolve().parents[1]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A two-layer Llama over bytes with random weights and a chat template."""
    path = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *letters, "Ġ" + "Y"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "Y")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    tokenizer.pad_token, tokenizer.chat_template = "</s>", CHAT
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(
        vocab_size=len(vocab), max_position_embeddings=256, bos_token_id=0, eos_token_id=1, **shape
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.6)  # far from ties
    model.save_pretrained(path)
    return path


def tokenizer_of(path):
    return PreTrainedTokenizerFast.from_pretrained(path)


def write_prompts(path, texts, **columns):
    rows = [{"prompt": text, **columns} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TEXTS = [f"question {'x' * (7 * i % 40)} number {i}" for i in range(13)] + ["same", "same"]


def answers_of(model_dir, tmp_path, name, *, budget=400, ranks=None, template=CHAT, **sampling):
    tokenizer = tokenizer_of(model_dir)
    tokenizer.chat_template = template
    settings = Sampling(**({"max_new_tokens": 12} | sampling))
    engine = HFEngine(load_model(str(model_dir), None, False, "cpu"), tokenizer, settings)
    prompts = read_prompts(write_prompts(tmp_path / "p.jsonl", TEXTS))
    encoded = encode_prompts(TEXTS, tokenizer, Template(chat=True))
    job = Job(prompts, list(map(len, encoded)), str(tmp_path / f"{name}.json"), "tiny", {})
    generate(job, engine, encoded, budget, ranks or Alone())
    return read_answers(job.output, prompts)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_the_batch(model_dir, tmp_path, temperature):
    settings = {"temperature": temperature, "top_p": 0.9}
    alone = answers_of(model_dir, tmp_path, "alone", budget=1, **settings)
    together = answers_of(model_dir, tmp_path, "together", budget=10**6, **settings)
    assert alone == together and len(alone) == len(TEXTS)
    assert len(set(alone)) > 5
    assert (alone[-1] == alone[-2]) == (temperature == 0)  # equal prompts draw apart


def test_a_thought_that_the_prompt_opens_is_part_of_the_answer(model_dir, tmp_path):
    """Cut short, it is a thought that has not ended, not an answer."""
    template = CHAT.replace("<assistant>", "<assistant><think>\n")
    answers = answers_of(model_dir, tmp_path, "opened", template=template)
    assert all(answer.startswith("<think>\n") for answer in answers)
    assert {spoken(answer) for answer in answers} == {None}
    tokenizer = tokenizer_of(model_dir)
    tokenizer.chat_template = template
    ((ids, start),) = encode_pairs(["Hi"], ["Yes"], tokenizer, Template(chat=True))
    texts = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])
    assert texts == ("<user>Hi\n<assistant>", "Yes</s>")


def test_sampling_follows_its_seed(model_dir, tmp_path):
    first, again, other = (
        answers_of(model_dir, tmp_path, f"s{i}", temperature=1.0, seed=seed)
        for i, seed in enumerate((1, 1, 2))
    )
    assert first == again != other


def test_the_seeded_sampler_draws_from_the_tempered_nucleus():
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -3.0])
    sampler = SeededSampler(range(4000), temperature=0.8, top_p=0.95)
    drawn = sampler(None, logits.repeat(4000, 1)).argmax(-1)
    kept = (logits / 0.8).softmax(-1)
    before = kept.cumsum(-1) - kept
    kept = torch.where(before < 0.95, kept, 0)
    expected = (kept.double() / kept.double().sum()).numpy()
    counts = np.bincount(drawn, minlength=5)
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], 4000 * expected[expected > 0]).pvalue > 1e-3


def test_shares_and_batches_partition_the_prompts_and_keep_the_budget():
    lengths = np.random.default_rng(0).integers(1, 300, 101).tolist()
    shares = [share_of(range(101), lengths, rank, 4) for rank in range(4)]
    assert sorted(i for share in shares for i in share) == list(range(101))
    loads = [sum(lengths[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths)
    batches = batches_of(shares[0], lengths, new_tokens=50, budget=1200)
    assert [i for batch in batches for i in batch] == shares[0]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + 50) <= 1200


def test_seeds_belong_to_the_prompt_not_to_its_place():
    one, two = prompt_seeds(["a", "b", "a"], 7), prompt_seeds(["b", "a", "a"], 7)
    assert one[1] == two[0] and [one[0], one[2]] == two[1:] and len(set(one)) == 3
    assert prompt_seeds(["a"], 7) != prompt_seeds(["a"], 8)


def test_lora_is_applied_merged_or_not(model_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = LlamaForCausalLM.from_pretrained(model_dir)
    adapted = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(model_dir), str(tmp_path / "adapter"), False, "cpu")
    ids = torch.arange(2, 30)[None]
    assert torch.allclose(loaded(ids).logits, adapted.eval()(ids).logits, atol=1e-5)
    assert not torch.allclose(
        loaded(ids).logits, load_model(str(model_dir), None, False, "cpu")(ids).logits, atol=1e-2
    )


def test_the_seam_of_a_plain_template_is_the_one_training_sees(model_dir):
    tokenizer = tokenizer_of(model_dir)
    template = Template(text="Human: {}\nAssistant: ")
    (ids,) = encode_prompts(["hi"], tokenizer, template)
    whole = tokenizer("Human: hi\nAssistant: Yes").input_ids
    assert whole[: len(ids)] == ids and tokenizer.decode(ids) == "Human: hi\nAssistant:"
    (ids,) = encode_prompts(["hi {}"], tokenizer, Template(text="Q {} A:\n"))
    assert tokenizer.decode(ids) == "Q hi {} A:\n"


def test_long_prompts_are_named_or_cut_on_the_left(model_dir):
    tokenizer = tokenizer_of(model_dir)
    texts = ["short", "a" * 90 + "END", "b" * 200 + "END"]
    with pytest.raises(InputError, match=r"2 of 3 prompts .* 60 tokens .* first at row 1 with 11"):
        encode_prompts(texts, tokenizer, Template(chat=True), limit=60)
    cut = encode_prompts(texts, tokenizer, Template(chat=True), limit=60, truncate=True)
    assert [len(ids) for ids in cut] == [len("<user>short\n<assistant>"), 60, 60]
    assert tokenizer.decode(cut[1]).startswith("<user>aaa")
    assert tokenizer.decode(cut[1]).endswith("aEND\n<assistant>")
    with pytest.raises(InputError, match="template alone"):
        encode_prompts(texts, tokenizer, Template(chat=True), limit=5, truncate=True)


def test_templates_that_are_missing_are_said(model_dir):
    tokenizer = tokenizer_of(model_dir)
    with pytest.raises(InputError, match="must hold one"):
        encode_prompts(["x"], tokenizer, Template(text="no place"))
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        encode_prompts(["x"], tokenizer, Template(chat=True))


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}])
def test_sampling_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_parts_survive_a_cut_line_and_foreign_fingerprints(tmp_path):
    parts = Parts(tmp_path / "a.json", "f" * 64, rank=0)
    parts.append([Answer(3, "x\nö", "stop", 2)])
    with open(parts.directory / "rank0.jsonl", "ab") as file:
        file.write(b'[4, "half')
    assert parts.done() == {3: Answer(3, "x\nö", "stop", 2)}
    parts.append([Answer(4, "whole", "stop", 1)])
    Parts(tmp_path / "a.json", "f" * 64, rank=1).append([Answer(0, "y", "length", 9)])
    assert sorted(parts.done()) == [0, 3, 4] and parts.done()[4].output == "whole"
    assert Parts(tmp_path / "a.json", "e" * 64, rank=0).done() == {}
    parts.remove()
    assert not (tmp_path / "a.json.parts").exists()


def test_prompt_and_answer_files_are_read_strictly(tmp_path):
    for name, content, match in [
        ("a.jsonl", "", "holds no record"),
        ("a.json", "[]", "holds no record"),
        ("b.jsonl", "{", "line 1 is not JSON"),
        ("c.txt", "x", "unknown suffix"),
        ("d.jsonl", '{"text": "x"}', "columns text"),
        ("e.jsonl", '{"prompt": "x"}\n{"prompt": ""}', "1 of 2 rows .* first at row 1"),
        ("f.jsonl", "[1]", "line 1 holds a list, expected an object"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=match):
            read_prompts(tmp_path / name)
    with pytest.raises(InputError, match="is not a file"):
        read_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "u.csv").write_text('\ufeffprompt,category\n"a\nb\u2028c",x\n')
    assert read_prompts(tmp_path / "u.csv")[0][:3] == ("a\nb\u2028c", "", "x")


def test_answers_to_other_prompts_are_refused(tmp_path):
    prompts = read_prompts(write_prompts(tmp_path / "p.jsonl", ["one", "two"]))
    path = tmp_path / "a.json"
    rows = [{"instruction": t, "output": "o"} for t in ("one", "two")]
    path.write_text(json.dumps(rows))
    assert read_answers(path, prompts) == ["o", "o"]
    for broken, match in [
        (rows[:1], "1 answers to 2 prompts"),
        (rows[::-1], "answer 0 is to 'two'"),
        ([rows[0], rows[1] | {"output": None}], "answer 1 has no text"),
    ]:
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=match):
            read_answers(path, prompts)


# ---------------------------------------------------------------------------------- the script


def script(*flags, launcher=(sys.executable,), **kwargs):
    command = [*launcher, str(ROOT / "examples" / "batch_inference.py"), *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


@pytest.mark.slow
def test_the_script_through_the_launcher_on_two_ranks_equals_one_process(model_dir, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", TEXTS, source="made")
    flags = ["--pretrain", model_dir, "--prompts", prompts, "--apply_chat_template"]
    flags += ["--max_new_tokens", 12, "--temperature", 1, "--top_p", 0.9, "--token_budget", 300]
    launcher = (str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2")
    launcher += ("--master_port", str(29600 + os.getpid() % 300))
    two = script(*flags, "--output_path", tmp_path / "two.json", launcher=launcher)
    _, err = two.communicate(timeout=400)
    assert two.returncode == 0, err[-2000:]
    expected = answers_of(model_dir, tmp_path, "one", temperature=1.0, top_p=0.9)
    records = read_records(tmp_path / "two.json")
    assert [r["output"] for r in records] == expected
    assert [r["instruction"] for r in records] == TEXTS
    assert all(set(r) == {"instruction", "output", "generator", "dataset"} for r in records)
    assert {r["dataset"] for r in records} == {"made"}
    assert [r["output"] for r in read_records(tmp_path / "two.jsonl")] == expected
    assert not (tmp_path / "two.json.parts").exists()


def test_a_killed_run_goes_on_from_its_parts(tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", [f"q{i}" for i in range(40)])
    flags = ["--engine", "openai", "--pretrain", MODEL, "--prompts", prompts]
    flags += ["--output_path", tmp_path / "a.json", "--concurrency", 2]
    with serve(lambda prompt, before: f"to {prompt}", delay=0.02) as served:
        flags += ["--base_url", served.url]
        process = script(*flags)
        deadline = time.monotonic() + 60
        while sum(served.asked.values()) < 12 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "a.json").exists()
        process = script(*flags)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "going on from" in out, err
        assert sum(served.asked.values()) <= 40 + 2
    outputs = [r["output"] for r in read_records(tmp_path / "a.json")]
    assert outputs == [f"to q{i}" for i in range(40)]


def test_bad_input_is_one_line_and_status_2(model_dir, tmp_path, monkeypatch, capsys):
    prompts = write_prompts(tmp_path / "p.jsonl", ["x" * 300])
    (tmp_path / "empty.jsonl").write_text("")
    hf = ["--pretrain", model_dir, "--output_path", tmp_path / "a.json"]
    with serve(lambda *_: BROKEN) as served:
        served_by = ["--engine", "openai", "--pretrain", "other", "--base_url", served.url]
        for flags, match in [
            (["--prompts", tmp_path / "empty.jsonl"], "holds no record"),
            (["--prompts", prompts, "--max_new_tokens", 50], "1 of 1 prompts are longer than the"),
            (["--prompts", prompts, "--pretrain", tmp_path / "no"], "is not there"),
            (["--prompts", prompts, prompts], "2 prompt files and 1 output"),
            (["--prompts", prompts, *served_by], "serves tiny-judge, not 'other'"),
            (["--prompts", prompts, "--engine", "openai"], "needs --base_url"),
        ]:
            monkeypatch.setattr("sys.argv", ["batch_inference.py", *map(str, [*hf, *flags])])
            with pytest.raises(SystemExit) as left:
                entry.report(batch_inference.main)
            err = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
            assert left.value.code == 2 and len(err) == 1 and match in err[0], err
    assert not (tmp_path / "a.json").exists()
