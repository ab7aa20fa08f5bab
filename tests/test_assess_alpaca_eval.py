"""AlpacaEval's own package reads our answers unchanged, in an environment of its own.

python -m venv /tmp/alpaca && /tmp/alpaca/bin/pip install alpaca_eval
ALPACA_EVAL_PYTHON=/tmp/alpaca/bin/python pytest tests/test_assess_alpaca_eval.py
"""

import json
import os
import subprocess

import pytest

from seal.assess.answers import Answer, write_answers
from seal.assess.prompts import Prompt

READER = """
import json, sys
from alpaca_eval.main import evaluate
table, annotations = evaluate(
    model_outputs=sys.argv[1], reference_outputs=sys.argv[2], annotators_config=sys.argv[3],
    fn_metric="get_winrate", sort_by="win_rate", precomputed_leaderboard=None,
    is_overwrite_leaderboard=True, is_return_instead_of_print=True, output_path=None,
    caching_path=None,
)
print(json.dumps([table.loc["ours", ["n_total", "win_rate"]].tolist(), annotations]))
"""
# An annotator that always names the second output; AlpacaEval shuffles which that is.
ANNOTATOR = """
local:
  prompt_template: {prompt}
  fn_completions: test_completions
  completions_kwargs: {{model_name: local, value: "Output (b)"}}
  completion_parser_kwargs:
    outputs_to_match: {{1: "Output \\\\(a\\\\)", 2: "Output \\\\(b\\\\)"}}
  batch_size: 1
"""


@pytest.mark.skipif(
    "ALPACA_EVAL_PYTHON" not in os.environ,
    reason="needs ALPACA_EVAL_PYTHON, a Python of an environment with alpaca_eval",
)
def test_alpaca_eval_reads_our_answers_unchanged(tmp_path):
    prompts = [Prompt(f"Do ü {i}\n{{x}}", "theirs", "", "", "helpful_base") for i in range(20)]
    outputs = [f'our "answer"\n{i} …' for i in range(20)]
    answers = [Answer(i, text, "stop", 3) for i, text in enumerate(outputs)]
    write_answers(tmp_path / "ours.json", prompts, answers, "ours", {})
    reference = [
        {"instruction": p.text, "output": p.reference, "generator": "ref", "dataset": p.source}
        for p in prompts
    ]
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{instruction}\nOutput (a): {output_1}\nOutput (b): {output_2}\nBetter:")
    (tmp_path / "configs.yaml").write_text(ANNOTATOR.format(prompt=prompt))
    files = [tmp_path / name for name in ("ours.json", "reference.json", "configs.yaml")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [os.environ["ALPACA_EVAL_PYTHON"], "-c", READER, *map(str, files)],
        env=environment | {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (n_total, win_rate), annotations = json.loads(done.stdout.splitlines()[-1])
    assert n_total == 20 and 0 <= win_rate <= 100
    ours = {a["instruction"]: a["output_2"] for a in annotations}
    assert ours == {p.text: text for p, text in zip(prompts, outputs, strict=True)}
    assert {a["generator_2"] for a in annotations} == {"ours"}
