"""Files: tensors are read without running what is in them; a claim ends with its process."""

import subprocess
import sys

import pytest
import torch

from seal.errors import InputError
from seal.files import claim, load_tensors


class Code:
    """Unpickled, it would leave a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_tensors_and_numbers_come_back(tmp_path):
    torch.save({"a": torch.arange(3), "b": [1.5, None]}, tmp_path / "x.pt")
    found = load_tensors(tmp_path / "x.pt")
    assert found["a"].tolist() == [0, 1, 2] and found["b"] == [1.5, None]


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    torch.save({"a": Code(tmp_path / "has run")}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="plain tensors") as caught:
        load_tensors(tmp_path / "x.pt")
    assert "\n" not in str(caught.value) and not (tmp_path / "has run").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 600])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    torch.save({"a": torch.arange(300)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:kept])
    with pytest.raises(InputError, match="plain tensors"):
        load_tensors(tmp_path / "x.pt")


def test_a_claim_holds_against_others_and_ends_with_its_process(tmp_path):
    code = f"from seal.files import claim; held = claim({str(tmp_path / 'out')!r}); "
    holder = subprocess.Popen(
        [sys.executable, "-c", code + "print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    with pytest.raises(InputError, match="has not ended"):
        claim(tmp_path / "out")
    holder.kill()
    holder.communicate()
    claim(tmp_path / "out").close()
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
