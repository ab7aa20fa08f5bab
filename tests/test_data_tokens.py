"""Tokens: the whole answer is supervised, nothing of the prompt, for every kind of tokenizer."""

import copy
import functools
import time

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordLevelTrainer
from transformers import PreTrainedTokenizerFast

from seal.datasets import SFTDataset, published_length_filter, row_id, tokenize_rows
from seal.datasets.identity import number_rows
from seal.errors import InputError
from seal.ids import id_text

CORPUS = [
    "Human: what is the capital of France?\nAssistant: Paris, of course. Hello Human",
    "  spaces   and\n\nempty lines\n of Human and Assistant: Hi Hi yes no  ",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;?!",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{% else %}"
    "{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = CHAT
    return fast


def templated(tokenizer: PreTrainedTokenizerFast, template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@functools.cache
def byte_level(trim_offsets: bool = True, begin: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2 and Llama 3: joins the space before a word to it; merges ' H' and spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    trim = processors.ByteLevel(trim_offsets=trim_offsets)
    first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.post_processor = processors.Sequence([trim, first]) if begin else trim
    return wrap(tokenizer)


@functools.cache
def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2: spaces become ▁, one is put first, unknown characters fall back to bytes.

    Learned word by word, as SentencePiece does, but applied to the whole text.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.pre_tokenizer = None
    return wrap(tokenizer)


@functools.cache
def unigram() -> PreTrainedTokenizerFast:
    """As T5 and XLM-R: Metaspace, pieces of a Unigram model."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer)


@functools.cache
def word_level() -> PreTrainedTokenizerFast:
    """Whole words; whitespace belongs to no token."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer)


KINDS = {
    "byte-level": byte_level,
    "byte-level, whole offsets": functools.partial(byte_level, trim_offsets=False),
    "byte-level, begin token": functools.partial(byte_level, begin=True),
    "sentencepiece bpe": sentencepiece_bpe,
    "unigram": unigram,
    "word-level": word_level,
}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield folder / "seal"


def talk(*turns: str) -> list[dict[str, str]]:
    """user, assistant, user, ... in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def rows_of(*conversations) -> datasets.Dataset:
    ids = [row_id(messages) for messages in conversations]
    return number_rows(datasets.Dataset.from_dict({"messages": conversations, "id": ids}))


def parts(tokenizer, dataset: SFTDataset, index: int) -> tuple[str, str]:
    """Text of what is not supervised and of what is."""
    row = dataset.rows[index]
    ids, learned = np.array(row["input_ids"]), np.array(row["supervised"])
    return tuple(tokenizer.decode(ids[mask]) for mask in (~learned, learned))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["Paris", "Hello Human", "yes, of course", "Hi"])
def test_published_template_supervises_the_answer_and_the_end(kind, answer):
    tokenizer = KINDS[kind]()
    data = tokenize_rows(rows_of(talk("what is it?", answer)), tokenizer, max_len=200)
    prompt, learned = parts(tokenizer, data, 0)
    words = tokenizer.decode(tokenizer(answer, add_special_tokens=False)["input_ids"])
    assert learned.removesuffix("</s>").strip() == words.strip()
    assert learned.endswith("</s>")
    assert prompt.replace(" ", "").endswith("Assistant:")
    assert data.rows[0]["input_ids"].count(tokenizer.bos_token_id) == ("begin" in kind)


@pytest.mark.parametrize("kind", KINDS)
def test_chat_template_supervises_every_answer_and_its_closing(kind):
    rows = rows_of(talk("what is it?", "Paris", "Hello", "yes, of course"))
    for template in (CHAT, MARKED):
        tokenizer = templated(KINDS[kind](), template)
        every = tokenize_rows(rows, tokenizer, max_len=200, apply_chat_template=True)
        last = tokenize_rows(
            rows, tokenizer, max_len=200, apply_chat_template=True, supervise="last"
        )
        squeezed = [parts(tokenizer, data, 0)[1].replace(" ", "") for data in (every, last)]
        first = "Paris<|end|>"
        final = tokenizer.decode(tokenizer("yes, of course", add_special_tokens=False)["input_ids"])
        final = final.replace(" ", "") + "<|end|>"
        assert squeezed == [first + final, final]
        begins = every.rows[0]["input_ids"].count(tokenizer.bos_token_id)
        assert begins == (template == CHAT)  # never doubled


def test_bytes_of_one_character_stay_together():
    tokenizer = sentencepiece_bpe()
    data = tokenize_rows(rows_of(talk("é?", "🙂 Hi 漢字🙂")), tokenizer, max_len=200)
    assert parts(tokenizer, data, 0)[1].strip() == "🙂 Hi 漢字🙂</s>"
    assert "\ufffd" not in parts(tokenizer, data, 0)[0]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(
    " \nHaué🙂:", max_size=12
)
conversations = st.lists(st.tuples(texts, texts), min_size=1, max_size=8)
relaxed = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@relaxed
@given(pairs=conversations, kind=st.sampled_from(list(KINDS)[:3]), template=st.booleans())
def test_no_character_of_the_answer_is_lost_and_none_of_the_prompt_leaks(pairs, kind, template):
    tokenizer = KINDS[kind]()
    written = "Human: {}\nAssistant: " if template else "<|user|>{}<|assistant|>"
    pairs = [(p, a) for p, a in pairs if p.strip() and a.strip()] or [("p", "a")]
    data = tokenize_rows(
        rows_of(*(talk(*pair) for pair in pairs)), tokenizer, max_len=500, input_template=written
    )
    for index, (prompt, answer) in enumerate(pairs):
        before, learned = parts(tokenizer, data, index)
        before = before.removeprefix("<s>")
        assert before + learned == written.format(prompt) + answer + "</s>"
        joined = learned.removesuffix(answer + "</s>")  # the template's last space, if merged
        assert joined in ("", " ") if template else joined == ""


@relaxed
@given(pairs=conversations, kind=st.sampled_from(list(KINDS)))
@example(pairs=[("p", "a  ")], kind="byte-level")  # ends in a token without width
def test_a_token_is_supervised_when_its_offsets_touch_the_answer(pairs, kind):
    tokenizer, written = KINDS[kind](), "Human: {}\nAssistant: "
    pairs = [(p, a) for p, a in pairs if p.strip() and a.strip()] + [("p", "a")]
    data = tokenize_rows(
        rows_of(*(talk(*pair) for pair in pairs)), tokenizer, max_len=500, input_template=written
    )
    for index, number in enumerate(data.row_numbers):
        head, answer = written.format(pairs[number][0]), pairs[number][1]
        found = tokenizer(head + answer, add_special_tokens=False, return_offsets_mapping=True)
        expected, before = [], 0
        for start, stop in found["offset_mapping"]:
            start = min(start, before) if start == stop else start  # spaces, cut off
            expected.append(start < len(head + answer) and stop > len(head))
            before = max(before, stop)
        assert data.rows[index]["supervised"][-len(expected) - 1 :] == [*expected, True]


@relaxed
@given(turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_chat_turns_are_supervised_exactly(turns):
    tokenizer = byte_level()
    turns = [(p or "p", a) for p, a in turns if a.strip()] or [("p", "a")]
    if not any(p.strip() for p, _ in turns):
        turns.append(("p", "a"))
    messages = talk(*(text for turn in turns for text in turn))
    data = tokenize_rows(rows_of(messages), tokenizer, max_len=2_000, apply_chat_template=True)
    before, learned = parts(tokenizer, data, 0)
    assert learned == "".join(f"{answer}<|end|>" for _, answer in turns)
    assert before == "<s>" + "".join(f"<|user|>{p}<|end|>\n<|assistant|>\n" for p, _ in turns)


def test_template_with_system_message_and_turns():
    tokenizer = byte_level()
    messages = [{"role": "system", "content": "Be kind."}, *talk("q1", "a1", "q2", "a2", "q3")]
    data = tokenize_rows(rows_of(messages), tokenizer, max_len=200)
    text = "Be kind.\nHuman: q1\nAssistant: a1\nHuman: q2\nAssistant: a2</s>"
    assert tokenizer.decode(data.rows[0]["input_ids"]) == text
    assert parts(tokenizer, data, 0)[1] == "a1a2</s>"
    last = tokenize_rows(rows_of(messages), tokenizer, max_len=200, supervise="last")
    assert parts(tokenizer, last, 0)[1] == "a2</s>"


def test_pretrain_mode_supervises_every_token_without_template():
    tokenizer = byte_level()
    data = tokenize_rows(rows_of(talk("one ", "two")), tokenizer, max_len=50, pretrain_mode=True)
    assert parts(tokenizer, data, 0) == ("", "one two</s>")
    assert len(data.batch([0]).targets) == data.lengths[0] - 1


def test_rows_are_skipped_by_reason_and_cut_rows_are_counted():
    tokenizer = word_level()
    long = " ".join(["yes"] * 30)
    rows = rows_of(
        talk("yes", "no"),
        talk("  ", "no"),
        talk("yes", " \n"),
        [],
        talk(long, "no"),
        talk("yes", long),
        talk("yes", "no"),
        talk("yes"),
    )
    data = tokenize_rows(rows, tokenizer, max_len=20)
    assert data.skipped == {"empty prompt": 2, "empty response": 2, "prompt too long": 1}
    assert (len(data), data.raw, data.truncated) == (3, 8, 1)
    assert data.row_numbers.tolist() == [0, 5, 6]
    assert data.occurrences.tolist() == [0, 0, 1]
    assert id_text(data.ids).to_pylist() == [rows["id"][i] for i in (0, 5, 6)]
    assert data.lengths.tolist() == [7, 20, 7]  # Human : yes Assistant : no </s>
    assert tokenizer.eos_token_id not in data.rows[1]["input_ids"]
    assert data.rows.column_names == ["input_ids", "supervised", "id", "occurrence", "row"]


def test_an_answer_the_tokenizer_drops_is_skipped():
    tokenizer = Tokenizer(models.BPE())  # no unknown token: other characters leave nothing
    tokenizer.train_from_iterator(CORPUS, BpeTrainer(special_tokens=SPECIAL, show_progress=False))
    rows = rows_of(talk("yes", "🙂"), talk("yes", "no"))
    data = tokenize_rows(rows, wrap(tokenizer), max_len=50)
    assert data.skipped == {"no response token": 1} and data.row_numbers.tolist() == [1]


def test_prompt_limit_is_the_published_one():
    tokenizer = word_level()
    for n_words, kept in ((10, True), (11, False)):  # template: Human : ... Assistant :
        rows = rows_of(talk(" ".join(["yes"] * n_words), "no"), talk("yes", "no"))
        data = tokenize_rows(rows, tokenizer, max_len=17)
        assert (len(data) == 2) is kept
        assert published_length_filter(rows, tokenizer, max_len=17).tolist() == [kept, True]


def test_published_filter_counts_the_begin_token_and_needs_text():
    rows = rows_of(talk("what is it?", "yes"), talk("", "yes"), talk("Hi", ""))
    counts = [
        len(t("Human: what is it?\nAssistant: ")["input_ids"])
        for t in (byte_level(), byte_level(begin=True))
    ]
    assert counts[1] == counts[0] + 1
    for tokenizer, kept in ((byte_level(), True), (byte_level(begin=True), False)):
        mask = published_length_filter(rows, tokenizer, max_len=counts[0] + 3)
        assert mask.tolist() == [kept, True, False]  # a template around nothing is not empty
    bare = published_length_filter(rows, byte_level(), max_len=100, input_template=None)
    assert bare.tolist() == [True, False, False]


@pytest.fixture
def data() -> SFTDataset:
    answers = ["Paris", "yes no", "Hello Human, yes", "Hi", "no"]
    rows = rows_of(*(talk(f"what {i}?", answer) for i, answer in enumerate(answers)))
    return tokenize_rows(rows, byte_level(), max_len=100)


def test_batch_is_the_rows_one_behind_the_other(data):
    asked = [3, 0, 3, 2]
    batch = data.batch(asked)
    assert batch.rows.tolist() == asked
    assert batch.max_seqlen == max(data.lengths[asked])
    assert batch.input_ids.shape == batch.position_ids.shape == (1, sum(data.lengths[asked]))
    bounds = batch.cu_seqlens.tolist()
    for segment, (index, start, stop) in enumerate(zip(asked, bounds, bounds[1:], strict=False)):
        row = data.rows[index]
        assert batch.input_ids[0, start:stop].tolist() == row["input_ids"]
        assert batch.position_ids[0, start:stop].tolist() == list(range(stop - start))
        learned = np.flatnonzero(row["supervised"])
        mine = batch.segments == segment
        assert (batch.positions[mine] - start + 1).tolist() == learned.tolist()
        assert batch.targets[mine].tolist() == np.array(row["input_ids"])[learned].tolist()
    kinds = {name: value.dtype for name, value in batch._asdict().items() if name != "max_seqlen"}
    assert kinds.pop("cu_seqlens") == torch.int32 and set(kinds.values()) == {torch.int64}
    moved = batch.to("meta")
    assert moved.targets.device.type == "meta" and moved.max_seqlen == batch.max_seqlen


def test_first_token_of_a_row_is_never_a_target():
    rows = rows_of(talk("one", "two"), talk("three", "four"))
    data = tokenize_rows(rows, byte_level(), max_len=50, pretrain_mode=True)
    batch = data.batch([0, 1])
    starts = set(batch.cu_seqlens.tolist())
    assert not starts & set((batch.positions + 1).tolist())
    assert len(batch.targets) == data.lengths.sum() - 2


def test_select_keeps_identity(data):
    part = data.select([4, 1])
    assert part.ids.tolist() == data.ids[[4, 1]].tolist()
    assert part.row_numbers.tolist() == [4, 1] and len(part) == 2
    again = part.select([1])
    assert again.batch([0]).input_ids.tolist() == data.batch([1]).input_ids.tolist()
    assert again.rows[0]["id"] == data.rows[1]["id"]
    assert len({data.fingerprint, part.fingerprint, again.fingerprint}) == 3


def test_rows_with_other_tokens_know_their_counts(data):
    bare, swapped = data.responses_only(), data.select([3, 1]).swapped()
    assert bare.supervised.tolist() == data.supervised.tolist()
    assert bare.ids.tolist() == data.ids.tolist() and (bare.lengths < data.lengths).all()
    for rows in (data, bare, swapped):
        assert rows.highest_token >= max(max(row) for row in rows.rows["input_ids"])
        for at, row in enumerate(rows.rows):
            assert rows.lengths[at] == len(row["input_ids"])
            assert rows.supervised[at] == len(rows.batch([at]).targets)


def test_identity_does_not_depend_on_order_or_tokenizer():
    rows = rows_of(*(talk(f"q{i % 7}", f"a{i % 5}") for i in range(50)))
    shuffled = rows.shuffle(seed=3)
    one = tokenize_rows(rows, byte_level(), max_len=100)
    two = tokenize_rows(shuffled, word_level(), max_len=30, input_template=None)
    ids = [dict(zip(data.row_numbers, data.ids.tolist(), strict=True)) for data in (one, two)]
    assert ids[0] == ids[1]


def test_second_start_reads_the_cache(cache):
    rows = rows_of(*(talk(f"what is {i}?", f"yes {i}") for i in range(3_000)))
    tokenizer = byte_level()
    first = tokenize_rows(rows, tokenizer, max_len=64, num_proc=2)
    before = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    tokenizer(["a", "b c"], padding=False, truncation=True, max_length=1)  # leaves a state behind
    start = time.perf_counter()
    second = tokenize_rows(rows, tokenizer, max_len=64, num_proc=1)
    assert time.perf_counter() - start < 2
    assert before == {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert second.fingerprint == first.fingerprint
    assert second.rows[:]["input_ids"] == first.rows[:]["input_ids"]


def test_one_process_and_two_agree():
    rows = rows_of(*(talk(f"what is {i}?", f"no {i}") for i in range(101)))
    one = tokenize_rows(rows, byte_level(), max_len=64, num_proc=1)
    datasets_before = one.rows[:]
    two = tokenize_rows(rows.select(range(101)), byte_level(), max_len=64, num_proc=2)
    assert two.rows[:] == datasets_before


@pytest.mark.parametrize(
    "change",
    [
        {"max_len": 63},
        {"input_template": "Q: {} A: "},
        {"apply_chat_template": True},
        {"pretrain_mode": True},
        {"supervise": "last"},
    ],
)
def test_every_argument_is_part_of_the_fingerprint(data, change):
    rows = rows_of(talk("q", "a"))
    names = {
        tokenize_rows(rows, byte_level(), **{"max_len": 64, **options}).fingerprint
        for options in ({}, change)
    }
    assert len(names) == 2


def test_chat_template_is_part_of_the_fingerprint():
    rows, names = rows_of(talk("q", "a")), set()
    for template in (CHAT, MARKED):
        tokenizer = templated(byte_level(), template)
        names.add(tokenize_rows(rows, tokenizer, max_len=64, apply_chat_template=True).fingerprint)
    assert len(names) == 2


def test_template_that_hides_thoughts_and_trims():
    """As Qwen 3 and Llama 3: an empty thought before the last answer only, answers trimmed."""
    tokenizer = templated(
        byte_level(),
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '(think)' }}{% endif %}"
        "{{ m['content'] | trim + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    )
    rows = rows_of(talk("q1", " a1 ", "q2", "a2\n"))
    data = tokenize_rows(rows, tokenizer, max_len=200, apply_chat_template=True)
    assert parts(tokenizer, data, 0)[1] == "a1<|end|>(think)a2<|end|>"


def test_template_that_closes_the_last_turn_twice():
    """As Phi 3: an end of text behind the end of the last turn."""
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% else %}{{ eos_token }}{% endif %}"
    )
    marked = MARKED + "{% generation %}{{ eos_token }}{% endgeneration %}"
    rows = rows_of(talk("q1", "a1", "q2", "a2"))
    options = {"max_len": 200, "apply_chat_template": True}
    for written, end in ((template, "\n"), (marked, "")):
        tokenizer = templated(byte_level(), written)
        every = tokenize_rows(rows, tokenizer, **options)
        assert parts(tokenizer, every, 0)[1] == f"a1<|end|>a2<|end|>{end}</s>"
        last = tokenize_rows(rows, tokenizer, **options, supervise="last")
        assert parts(tokenizer, last, 0)[1] == f"a2<|end|>{end}</s>"


BAD_CHAT = {
    "refuses": ("{{ raise_exception('no\nsystem') }}", "refuses the conversation"),
    "broken": ("{% for m in messages %}", "refuses the conversation"),
    "other prompt": (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<reply>' }}{% endif %}",
        "generation prompt is not how it starts",
    ),
    "rewrites": (
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "rewrites the text",
    ),
    "in parts": (
        "{% for m in messages %}{% generation %}{{ m['content'][0].text }}{% endgeneration %}"
        "{% endfor %}",
        "does not write the last answer",
    ),
}


@pytest.mark.parametrize("name", BAD_CHAT)
def test_bad_chat_template_names_the_row(name):
    template, message = BAD_CHAT[name]
    tokenizer = templated(byte_level(), template)
    with pytest.raises(InputError, match=rf"row 0 \(from 0\): .*{message}") as error:
        tokenize_rows(rows_of(talk("q", "a")), tokenizer, max_len=64, apply_chat_template=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_template": "Human:"}, "must hold one {}"),
        ({"input_template": "{} {}"}, "must hold one {}"),
        ({"input_template": "{name} {}"}, "must hold one {}"),
        ({"max_len": 3}, "at least 4 tokens, got 3"),
        ({"supervise": "first"}, "all or last, got 'first'"),
        ({"max_len": 5}, "all 2 rows are skipped .2 prompt too long. at max_len 5"),
    ],
)
def test_bad_options(options, message):
    rows = rows_of(talk("what is", "yes"), talk("what is it", "yes"))
    with pytest.raises(InputError, match=message) as error:
        tokenize_rows(rows, word_level(), **{"max_len": 64, **options})
    assert "\n" not in str(error.value)


def test_tokenizer_without_chat_template():
    tokenizer = templated(byte_level(), None)
    with pytest.raises(InputError, match="has no chat template"):
        tokenize_rows(rows_of(talk("q", "a")), tokenizer, max_len=64, apply_chat_template=True)
