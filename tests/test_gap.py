"""Law of Algorithm 1: two adapters on one frozen base equal two models trained side by side."""

import numpy as np
import pytest
from gap_driver import CHECKPOINTING, MAX_NORM, STAGES
from launch import ROOT, deepspeed
from tiny_world import make_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[1, 2], ids="ranks-{}".format)
def results(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(f"gap{request.param}")
    model = make_model(out / "llama")
    done = deepspeed(ROOT / "tests/gap_driver.py", model, out, ranks=request.param)
    assert done.status == 0, done.output[-3000:]
    return out


@pytest.mark.parametrize("checkpointing", [name or "none" for name in CHECKPOINTING])
@pytest.mark.parametrize("stage", STAGES)
def test_two_adapters_equal_two_models(results, stage, checkpointing):
    with np.load(results / f"{stage}-{checkpointing}.npz") as found:
        names = [name.removeprefix("shared/") for name in found if name.startswith("shared/")]
        assert len(names) == 2 * 8 + 2
        norms = found["apart/norms"]
        assert norms.max() > MAX_NORM, "nothing was clipped"
        for name in names:
            shared, apart = found[f"shared/{name}"], found[f"apart/{name}"]
            np.testing.assert_allclose(shared, apart, rtol=0, atol=5e-6, err_msg=name)
        tracker = [name for name in names if ".tracker." in name]
        for name in tracker:
            main = found[f"shared/{name.replace('.tracker.', '.default.')}"]
            assert np.abs(found[f"shared/{name}"] - main).max() > 1e-4, "the levels did not part"
        assert np.abs(found["shared/logits"]).max() > 1e-4
