"""What a run leaves of its arguments may be shared: no secret, no folder of this machine."""

import json

import numpy as np

from seal.cli import flags as cli
from seal.utils import record


def test_no_local_path_is_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/llama").mkdir(parents=True)
    data = f"{tmp_path}/user.jsonl,org/data@main,../alice/more.jsonl"
    words = ["--pretrain", "models/llama", "--dataset", data, "--input_template", "Q: {} A: "]
    words += [f"--save_path={tmp_path}/out", "--selector_path", "~/alice/s.parquet"]
    monkeypatch.setattr("sys.argv", [f"{tmp_path}/examples/train_sft.py", *words])
    flags = vars(cli.sft_parser().parse_args(words))
    record.write_run(flags, tmp_path / "out")
    text = (tmp_path / "out/seal_run.json").read_text()
    assert not any(word in text for word in (str(tmp_path), "alice", "models"))
    run = json.loads(text)
    assert run["arguments"]["dataset"] == "user.jsonl,org/data@main,more.jsonl"
    assert run["arguments"]["pretrain"] == "llama" and run["arguments"]["save_path"] == "out"
    assert run["arguments"]["input_template"] == "Q: {} A: "
    assert run["command"].startswith("train_sft.py --pretrain llama --dataset user.jsonl,org/data")
    assert "--save_path=out" in run["command"]


def test_the_identity_of_a_run_keeps_whole_paths_and_no_free_argument(tmp_path):
    words = ["--pretrain", f"{tmp_path}/model", "--dataset", "S", "--use_wandb", "s3cret"]
    args = cli.sft_parser().parse_args([*words, "--save_steps", "3"])
    identity = cli.identity(args, np.zeros(3, "V16"))
    assert identity["pretrain"] == f"{tmp_path}/model" and "pretrain's content" in identity
    assert not identity.keys() & {"use_wandb", "save_steps", "save_path"}
