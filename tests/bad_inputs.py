"""Hundreds of bad inputs, generated: flags, row files, artefacts and model directories.

`make_cases` writes what is bad into a world of tests/test_bad_input.py and gives the command lines.
"""

import argparse
import gzip
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from seal.cli import flags

Case = tuple[str, str, str]  # name, script, flags beyond a good run's
PARSERS = {
    "sft": flags.sft_parser,
    "selector": flags.selector_parser,
    "score": flags.score_parser,
}
WORDS = ("x", "nan", "-2", "1e999", "1.5x", "")
# A layer's bound depends on the model, and is not looked at by the method of a good run.
ALLOWED = {("layer", "-2")}
ROWS = [{"prompt": f"What is {n}?", "response": f"It is {n * n}."} for n in range(12)]


def make_cases(world: Path) -> Iterator[Case]:
    """Every case; what it needs is written below `world`."""
    yield from flag_cases()
    yield from config_cases(world)
    yield from file_cases(world)
    yield from artefact_cases(world)
    yield from model_cases(world)
    yield from command_cases(world)


def typed_flags() -> dict[str, tuple[str, argparse.Action]]:
    """Flag -> the first script that has it, and its declaration."""
    found = {}
    for script, parser in PARSERS.items():
        for action in parser()._actions:
            if action.type is not None and action.dest != "local_rank":
                found.setdefault(action.dest, (script, action))
    return found


def flag_cases() -> Iterator[Case]:
    """Words of another type and values out of bounds, for every flag that takes a number."""
    for name, (script, action) in typed_flags().items():
        for word in WORDS:
            if (name, word) not in ALLOWED:
                yield f"flag-{name}-{word or 'empty'}", script, f"--{name}={word}"
        if action.nargs is None:
            yield f"flag-{name}-alone", script, f"--{name}"


def written(pattern: Path, contents: dict[str, str | bytes]) -> Iterator[tuple[str, Path]]:
    """Writes each content under its name, which takes the place of {} in `pattern`."""
    for name, content in contents.items():
        path = Path(str(pattern).format(name))
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        yield name, path


def config_cases(world: Path) -> Iterator[Case]:
    """YAML files of flags."""
    texts = {
        "scalar": "max_len",
        "list": "- max_len",
        "nested": "max_len: {a: 1}",
        "unknown": "max_lne: 64",
        "value": "max_len: many",
        "bound": "train_batch_size: 0",
        "broken": "max_len: [64",
        "switch": "bf16: perhaps",
        "code": "max_len: !!python/object/apply:os.getcwd []",
        "binary": "\x00\x01",
    }
    for name, path in written(world / "config-{}.yaml", texts):
        yield f"config-{name}", "sft", f"--config {path}"
    yield "config-missing", "sft", f"--config {world}/none.yaml"
    yield "config-directory", "sft", f"--config {world}"


def row_files() -> dict[str, bytes]:
    """A sound file of each format."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    sheet = "prompt,response\n" + "".join(f'"{r["prompt"]}","{r["response"]}"\n' for r in ROWS)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return {
        "jsonl": lines.encode(),
        "json": json.dumps(ROWS).encode(),
        "csv": sheet.encode(),
        "tsv": sheet.replace('","', '"\t"').replace("prompt,", "prompt\t").encode(),
        "parquet": sink.getvalue().to_pybytes(),
        "jsonl.gz": gzip.compress(lines.encode()),
        "csv.gz": gzip.compress(sheet.encode()),
    }


def file_cases(world: Path) -> Iterator[Case]:
    """Row files that are cut, garbled, empty, of another encoding or format, or without text."""
    sound = row_files()
    for suffix, content in sound.items():
        half = content.find(b"What is 6") + 4 if suffix[0] != "p" and suffix[-1] != "z" else 60
        damaged = {
            "cut": content[:half],
            "empty": b"",
            "zeros": bytes(len(content)),
            "bytes": bytes(range(128, 256)) * 8,
            "other": sound["parquet" if suffix != "parquet" else "jsonl"],
            "utf16": "\n".join(json.dumps(row) for row in ROWS).encode("utf-16"),
        }
        for damage, path in written(world / f"{{}}.{suffix}", damaged):
            yield f"file-{suffix}-{damage}", "sft", f"--dataset {path}"
    records = {
        "numbers": "1\n2\n",
        "lists": '["a", "b"]\n',
        "null": "null\n",
        "columns": '{"colour": "red"}\n',
        "no-object": '"prompt"\n',
        "number-answers": '{"prompt": "a", "response": 1}\n',
        "messages-number": '{"messages": 3}\n',
        "messages-roles": '{"messages": [{"role": "king", "content": "a"}]}\n',
        "messages-no-role": '{"messages": [{"content": "a"}]}\n',
        "messages-text": '{"messages": "[{"}\n',
        "silent": '{"prompt": "a", "response": ""}\n',
        "surrogate": '{"prompt": "\\ud800", "response": "a"}\n',
        "tools": '{"prompt": "a", "response": "b", "tools": 3}\n',
        "only-user": '{"messages": [{"role": "user", "content": "a"}]}\n',
        "images": '{"prompt": [{"type": "image"}], "response": "b"}\n',
    }
    thrice = {name: line * 3 for name, line in records.items()}
    for name, path in written(world / "records-{}.jsonl", thrice):
        yield f"records-{name}", "sft", f"--dataset {path}"
        if name in ("numbers", "silent", "messages-number"):
            yield f"new-{name}", "selector", f"--new_dataset {path}"
            yield f"scored-{name}", "score", f"--new_dataset {path}"
    unknown = world / "rows.xlsx"
    unknown.write_bytes(b"PK")
    yield "file-suffix", "sft", f"--dataset {unknown}"


def artefact_cases(world: Path) -> Iterator[Case]:
    """Selectors with one column or one key of the metadata damaged, and files that are none."""
    sound = pq.read_table(world / "good.parquet")
    for name, table in itertools.chain(damaged_columns(sound), damaged_meta(sound)):
        path = world / f"selector-{name}.parquet"
        pq.write_table(table, path)
        yield f"selector-{name}", "sft", f"--topp 0.5 --selector_path {path}"
    content = (world / "good.parquet").read_bytes()
    files = {
        "cut": content[: len(content) // 2],
        "tail": content[20:],
        "empty": b"",
        "bytes": bytes(range(256)),
        "zeros": bytes(1000),
    }
    for suffix in ("parquet", "pt"):
        for name, path in written(world / f"file-{{}}.{suffix}", files):
            yield f"selector-{name}-{suffix}", "sft", f"--topp 0.5 --selector_path {path}"
    csv = world / "selector.csv"
    csv.write_text("id,score\n")
    yield "selector-csv", "sft", f"--topp 0.5 --selector_path {csv}"
    yield "selector-directory", "sft", f"--topp 0.5 --selector_path {world}"


def damaged_columns(sound: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Each column missing, of another type, null or out of its bounds."""
    n = len(sound)
    for place, field in enumerate(sound.schema):
        name, number = field.name, pa.types.is_integer(field.type)
        yield f"{name}-missing", sound.drop_columns(name)
        yield f"{name}-twice", sound.append_column(field, sound[name])
        texts = pa.array([[str(k)] for k in range(n)])
        changed = {"lists": texts}
        if name not in ("logit", "loss"):
            changed["nulls"] = pa.nulls(n, field.type)
        if pa.types.is_floating(field.type):
            changed |= {
                "nan": pa.array([float("nan")] * n, field.type),
                "infinite": pa.array([float("-inf")] * n, field.type),
            }
        elif number:
            changed["negative"] = pa.array([-1] * n, field.type)
        else:
            changed |= {"words": pa.array(["a"] * n), "repeated": pa.array([sound[name][0]] * n)}
        for damage, values in changed.items():
            metadata = sound.schema.metadata
            table = sound.set_column(place, pa.field(name, values.type), values)
            yield f"{name}-{damage}", table.replace_schema_metadata(metadata)
    yield (
        "weight-sum",
        sound.set_column(5, sound.schema.field(5), pa.array([3.0] * n, pa.float32())),
    )
    yield "no-lines", sound.slice(0, 0)


def damaged_meta(sound: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Each key of the metadata missing or of another type."""

    def with_meta(meta: object) -> pa.Table:
        text = meta if isinstance(meta, str) else json.dumps(meta)
        return sound.replace_schema_metadata({b"seal": text.encode()})

    meta = json.loads(sound.schema.metadata[b"seal"])
    for key in meta:
        yield f"meta-{key}-missing", with_meta({k: v for k, v in meta.items() if k != key})
        yield f"meta-{key}-type", with_meta(meta | {key: [1]})
    for key in meta["dataset"]:
        without = {k: v for k, v in meta["dataset"].items() if k != key}
        yield f"meta-dataset-{key}-missing", with_meta(meta | {"dataset": without})
        changed = meta["dataset"] | {key: [1]}
        yield f"meta-dataset-{key}-type", with_meta(meta | {"dataset": changed})
    yield "meta-none", sound.replace_schema_metadata({})
    yield "meta-list", with_meta([1])
    yield "meta-text", with_meta("format 1")
    yield "meta-later", with_meta(meta | {"format": 99})
    yield "meta-method-unknown", with_meta(meta | {"method": "magic"})


def model_cases(world: Path) -> Iterator[Case]:
    """Model directories with a file missing, cut, garbled or of another model."""

    def directory(name: str, base: str = "model") -> Path:
        return Path(shutil.copytree(world / base, world / f"damaged-{name}"))

    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    for file in files:
        content = (world / "model" / file).read_bytes()
        damaged = {"cut": content[: len(content) // 2], "empty": b"", "bytes": b"\xff\xfe" * 50}
        for damage, changed in damaged.items():
            at = directory(f"{file}-{damage}")
            (at / file).write_bytes(changed)
            yield f"model-{file}-{damage}", "sft", f"--pretrain {at}"
    config = json.loads((world / "model/config.json").read_text())
    for name, change in {
        "type-unknown": {"model_type": "marvin"},
        "type-number": {"model_type": 3},
        "layers-text": {"num_hidden_layers": "two"},
        "layers-more": {"num_hidden_layers": 3},
        "heads": {"num_attention_heads": 5},
        "heads-zero": {"num_attention_heads": 0},
        "hidden": {"hidden_size": 48},
        "vocabulary": {"vocab_size": 16},
        "vocabulary-negative": {"vocab_size": -1},
        "activation": {"hidden_act": "zigzag"},
    }.items():
        at = directory(name)
        (at / "config.json").write_text(json.dumps(config | change))
        yield f"model-{name}", "sft", f"--pretrain {at}"
    for name in ("list", "number"):
        at = directory(f"config-{name}")
        (at / "config.json").write_text({"list": "[]", "number": "3"}[name])
        yield f"model-config-{name}", "sft", f"--pretrain {at}"
    weights = load_file(world / "model/model.safetensors")
    first = sorted(weights)[0]
    for name, kept in {
        "tensor-missing": {k: v for k, v in weights.items() if k != first},
        "tensor-shape": weights | {first: weights[first][:4].clone()},
        "tensor-nan": weights | {first: weights[first] * float("nan")},
        "tensor-none": {},
    }.items():
        at = directory(name)
        save_file(kept, at / "model.safetensors", {"format": "pt"})
        yield f"model-{name}", "sft", f"--pretrain {at}"
    template = directory("template")
    (template / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}")
    yield "model-template", "sft", f"--pretrain {template} --apply_chat_template"
    yield from adapter_cases(world, directory)


def adapter_cases(world: Path, directory) -> Iterator[Case]:
    """Adapters with a file missing, cut or of another base."""
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        content = (world / "adapter" / file).read_bytes()
        for damage, changed in {"cut": content[: len(content) // 2], "empty": b""}.items():
            at = directory(f"{file}-{damage}", "adapter")
            (at / file).write_bytes(changed)
            yield f"adapter-{file}-{damage}", "sft", f"--pretrain {at}"
    at = directory("adapter-no-weights", "adapter")
    (at / "adapter_model.safetensors").unlink()
    yield "adapter-no-weights", "sft", f"--pretrain {at}"
    config = json.loads((world / "adapter/adapter_config.json").read_text())
    for name, change in {
        "base-missing": {"base_model_name_or_path": str(world / "nowhere")},
        "base-none": {"base_model_name_or_path": None},
        "kind-unknown": {"peft_type": "MAGIC"},
        "rank-text": {"r": "four"},
        "rank-other": {"r": 2},
        "modules-none": {"target_modules": ["nose"]},
    }.items():
        at = directory(f"adapter-{name}", "adapter")
        (at / "adapter_config.json").write_text(json.dumps(config | change))
        yield f"adapter-{name}", "sft", f"--pretrain {at}"


def command_cases(world: Path) -> Iterator[Case]:
    """Subcommands of `seal` on what the cases before have damaged."""
    uses = {
        "show": "show {}",
        "export": "export {} --dataset {user} --topp 0.5 --out out.jsonl",
        "report": "report {} --topp 0.5 --out out.html",
        "compare": "compare {good} {}",
        "merge": "merge-scores {good} {} --out out.parquet",
    }
    names = ("file-cut", "file-empty", "file-bytes", "selector-score-nan", "selector-meta-none")
    for (verb, words), name in itertools.product(uses.items(), (*names, "nowhere")):
        paths = {"user": world / "user.jsonl", "good": world / "good.parquet"}
        yield f"{verb}-{name}", "command", words.format(world / f"{name}.parquet", **paths)
    for name in ("cut", "empty", "bytes", "zeros"):
        settings = (
            f"--dataset {world}/user.jsonl --selector_tokenizer {world}/model --out out.parquet"
        )
        yield f"convert-{name}", "command", f"convert {world}/file-{name}.pt {settings}"
    for name in (
        "adapter_config.json-cut",
        "adapter_model.safetensors-cut",
        "adapter-base-missing",
    ):
        yield f"merge-{name}", "command", f"merge {world}/damaged-{name} --out out"
