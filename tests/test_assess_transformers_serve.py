"""The served judge against `transformers serve`: a real model's answers, and a killed server."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launch import free_port
from tiny_world import make_model

from seal.assess.openai_judge import OpenAIJudge
from seal.assess.served import Endpoint
from seal.assess.verdicts import VerdictCache
from seal.errors import InputError

SERVING = ("fastapi", "uvicorn", "openai")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, SERVING)),
        reason="needs pip install transformers[serving]",
    ),
]
START_SECONDS = 120


@contextmanager
def served(model: Path, port: int) -> Iterator[subprocess.Popen]:
    """`transformers serve MODEL` until the block ends; its model list is the (empty) hub cache."""
    words = ["serve", model, "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    hub = model.parent / "hub"
    hub.mkdir(exist_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)}
    command = [sys.executable, "-m", "transformers.cli.transformers", *map(str, words)]
    with open(model.parent / "serve.log", "a") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        yield server
    finally:
        server.kill()
        server.wait()


def wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(START_SECONDS * 5):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError(url)


def test_a_real_served_model_judges_and_a_killed_server_costs_no_verdict(tmp_path):
    model = make_model(tmp_path / "model")
    ends = {"eos_token_id": list(range(0, 500, 9))}  # a random model's replies end too
    (Path(model) / "generation_config.json").write_text(json.dumps(ends))
    port = free_port()
    settings = {"retries": 0, "timeout": 60.0, "concurrency": 1}
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", str(model), **settings)
    prompts, answers = [f"question {i}" for i in range(4)], [f"answer {i}" for i in range(4)]

    with served(model, port):
        endpoint.check()
        judge = OpenAIJudge(endpoint, VerdictCache(tmp_path / "v.sqlite"))
        first = judge.refusal(prompts[:2], answers[:2])
        assert judge.cost.calls == 2 and judge.cost.completion_tokens > 4
    assert [v.label for v in first] == ["unscored"] * 2  # a random model says no verdict
    assert all(v.raw and v.value is None for v in first)

    with pytest.raises(InputError, match="Connection"):  # killed: what is new cannot be asked
        judge.refusal(prompts, answers)
    with served(model, port):
        judge = OpenAIJudge(endpoint, VerdictCache(tmp_path / "v.sqlite"))
        verdicts = judge.refusal(prompts, answers)
    assert verdicts[:2] == first and len(verdicts) == 4
    assert (judge.cost.calls, judge.cost.cached) == (2, 2)
