"""Published selectors: bare tensors read safely, and matched to rows or refused."""

import os
import pickle
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seal.datasets import load_rows, published_length_filter
from seal.errors import InputError
from seal.ids import id_text
from seal.selection.artefact import read_selection, write_selection
from seal.selection.load import load_selection
from seal.selection.published import published_columns, read_published

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PUBLISHED = {"seal_selector_llama3.pt": 111_900, "seal_selector_pyt.pt": 111_887}
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="needs the research data in ../shared/data"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Every word is one unknown token, so lengths count words."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )


def word_rows(tmp_path, n: int = 30) -> datasets.Dataset:
    """Row i has i words of prompt."""
    lines = (f'{{"prompt": "{"a " * i}b", "response": "c d"}}\n' for i in range(n))
    path = tmp_path / "words.jsonl"
    path.write_text("".join(lines))
    return load_rows(str(path))


@needs_shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_load_as_plain_arrays(name):
    logits = read_published(SHARED / "published_selectors" / name)
    assert type(logits) is np.ndarray
    assert logits.shape == (PUBLISHED[name],) and logits.dtype == np.float32
    assert np.isfinite(logits).all()


@needs_shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_refused_for_another_dataset(tmp_path, name):
    path = SHARED / "published_selectors" / name
    with pytest.raises(InputError, match=rf"{PUBLISHED[name]} logits, but \d+ of 30 rows pass"):
        published_columns(path, word_rows(tmp_path), word_tokenizer(), 10)


def test_logits_are_matched_to_the_rows_that_pass_the_filter(tmp_path):
    rows, tokenizer = word_rows(tmp_path), word_tokenizer()
    passed = np.flatnonzero(published_length_filter(rows, tokenizer, max_len=16))
    assert 0 < len(passed) < 30
    logits = torch.randn(len(passed), generator=torch.Generator().manual_seed(0))
    torch.save(torch.nn.Parameter(logits), tmp_path / "published.pt")
    selection = load_selection(tmp_path / "published.pt", rows, tokenizer, 16)
    assert selection.row.tolist() == passed.tolist()
    assert id_text(selection.id).to_pylist() == [rows[int(i)]["id"] for i in passed]
    np.testing.assert_array_equal(selection.score, logits.numpy())
    expected = len(passed) * torch.softmax(logits.double(), 0)
    np.testing.assert_allclose(selection.weight, expected, rtol=1e-5)
    counts = selection.meta["dataset"]
    assert (counts["raw"], counts["scored"]) == (30, len(passed))
    assert sum(counts["skipped"].values()) == 30 - len(passed)
    columns, meta = published_columns(tmp_path / "published.pt", rows, tokenizer, 16)
    write_selection(tmp_path / "x.parquet", columns, meta)
    assert load_selection(tmp_path / "x.parquet").table.equals(selection.table)
    assert read_selection(tmp_path / "x.parquet").meta == selection.meta


def test_a_pt_needs_its_dataset_and_a_selector_a_known_suffix(tmp_path):
    with pytest.raises(InputError, match="--selector_tokenizer and --selector_max_len"):
        load_selection(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"a \.parquet or a published \.pt, got '\.csv'"):
        load_selection(tmp_path / "x.csv")


class Payload:
    """A pickle of this runs `os.mkdir` where it is loaded with trust."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_carries_code_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    plain, zipped = tmp_path / "plain.pt", tmp_path / "zipped.pt"
    plain.write_bytes(pickle.dumps(Payload(marker)))
    torch.save({"logits": torch.zeros(3), "extra": Payload(marker)}, zipped)
    for path in (plain, zipped):
        with pytest.raises(InputError, match="refused, not a file of plain tensors") as caught:
            read_published(path)
        assert "\n" not in str(caught.value)
        assert not marker.exists()
    pickle.loads(plain.read_bytes())
    assert marker.exists(), "the payload is real: a trusting loader runs it"


BAD = {
    "holds a dict": {"logits": torch.zeros(3)},
    "holds a list": [1.0, 2.0],
    "shape .3, 2.": torch.zeros(3, 2),
    r"shape \[\]": torch.tensor(1.0),
    r"shape \[0\]": torch.zeros(0),
    "not finite": torch.tensor([0.0, float("nan")]),
}


@pytest.mark.parametrize("match", BAD)
def test_other_contents_are_refused(tmp_path, match):
    torch.save(BAD[match], tmp_path / "x.pt")
    with pytest.raises(InputError, match=match):
        read_published(tmp_path / "x.pt")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(torch.zeros(100), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("hello", "world")
    for cut in range(0, len(whole), 101):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError) as caught:
            read_published(path)
        assert "\n" not in str(caught.value)
    for bad in (tmp_path / "zip.pt", tmp_path / "absent.pt", tmp_path):
        with pytest.raises(InputError):
            read_published(bad)
