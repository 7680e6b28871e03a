"""Datasets to batches: every way in, the sample's random state, and each refusal with its text."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BertConfig,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
)

from hf_mpruner.data import (
    Columns,
    calibration_loader,
    find_columns,
    find_label_names,
    find_max_length,
    label_ids,
    load_data,
    preprocess,
)
from hf_mpruner.data.encoding import find_kind
from hf_mpruner.errors import CalibrationError

WORDS = ("red", "green", "blue", "one", "two", "three")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=4)


@pytest.fixture
def texts() -> Dataset:
    rows = [" ".join(WORDS[: 1 + i % 6]) for i in range(20)]
    return Dataset.from_dict({"text": rows, "label": [i % 3 for i in range(20)], "id": [str(i) for i in range(20)]})


@pytest.fixture
def images() -> Dataset:
    pixels = [np.full((8, 8), 20 * i, dtype=np.uint8) for i in range(10)]
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    return Dataset.from_dict({"image": pixels, "label": [i % 2 for i in range(10)]}, features=features)


def loader_of(data: object, **kwargs: object) -> list[dict[str, torch.Tensor]]:
    settings = {"num_samples": 8, "batch_size": 4, "seed": 0, **kwargs}
    return [dict(batch) for batch in calibration_loader(data, **settings)]


# -- load_data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "tsv", "folder", "saved", "saved_dict"])
def test_every_local_form_gives_the_same_rows(kind, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if kind == "saved":
        texts.save_to_disk("data")
        loaded = load_data("data")
    elif kind == "saved_dict":
        DatasetDict(train=texts).save_to_disk("data")
        loaded = load_data("data", split="train")
    elif kind == "folder":
        (tmp_path / "csv").mkdir()  # named like a builder of `datasets`
        texts.to_csv("csv/train.csv")
        loaded = load_data("csv", split="train")
    elif kind == "tsv":
        texts.to_csv("data.tsv", sep="\t")
        loaded = load_data("data.tsv", split="train")
    else:
        getattr(texts, f"to_{kind}")(f"data.{kind}")
        loaded = load_data(tmp_path / f"data.{kind}")["train"]
    assert loaded["text"] == texts["text"]
    assert loaded["label"] == texts["label"]


def test_split_slices_and_splits_of_a_folder(texts, tmp_path):
    texts.to_parquet(tmp_path / "train.parquet")
    texts.select(range(6)).to_parquet(tmp_path / "validation.parquet")
    assert {name: len(data) for name, data in load_data(tmp_path).items()} == {"train": 20, "validation": 6}
    assert len(load_data(tmp_path, split="train[:25%]")) == 5
    with pytest.raises(ValueError, match=r"no split 'dev'. Its splits are 'train', 'validation'"):
        load_data(tmp_path, split="dev")


def test_missing_split_of_a_single_file_names_two_parts(texts, tmp_path):
    texts.to_csv(tmp_path / "one.csv")
    with pytest.raises(ValueError, match=r"no split 'validation', only 'train'.*'train\[:80%\]' and 'train\[80%:\]'"):
        load_data(tmp_path / "one.csv", split="validation")
    texts.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="no split 'test'"):
        load_data(tmp_path / "saved", split="test")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/data", "No data at '/nowhere/data': there is no such file or folder"),
        ("rows/train.csv", "No data at 'rows/train.csv': there is no such file or folder"),
        ("somebody/nothing", "No data at 'somebody/nothing': no such file or folder here, and no data set of that"),
    ],
)
def test_missing_data_says_what_was_tried(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        load_data(name)


def test_folder_without_data_and_file_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder holds no data files"):
        load_data(tmp_path)
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"ends in '\.xlsx', which is no data file.*\.csv"):
        load_data(tmp_path / "rows.xlsx")


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize(
    "name", ["header.csv", "nothing.csv", "nothing.jsonl", "list.json", "rows.parquet", "saved", "saved_dict"]
)
def test_data_without_rows_says_so(name, split, texts, tmp_path):
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "nothing.jsonl").write_text("")
    (tmp_path / "list.json").write_text("[]")
    empty = texts.select([])
    empty.to_parquet(tmp_path / "rows.parquet")
    empty.save_to_disk(tmp_path / "saved")
    DatasetDict(train=empty).save_to_disk(tmp_path / "saved_dict")
    with pytest.raises(ValueError, match=rf"Data set '.*{re.escape(name)}' has (no rows|a split without rows)"):
        load_data(tmp_path / name, split=split)


def test_a_part_without_rows_does_not_hide_the_others(texts, tmp_path):
    DatasetDict(train=texts, validation=texts.select([])).save_to_disk(tmp_path / "saved")
    assert len(load_data(tmp_path / "saved", split="train")) == len(texts)
    with pytest.raises(ValueError, match=r"saved' has no rows in 'validation'\. Pass data with examples"):
        load_data(tmp_path / "saved", split="validation")
    texts.to_csv(tmp_path / "one.csv")
    with pytest.raises(ValueError, match=r"has no rows in 'train\[:0\]'"):
        load_data(tmp_path / "one.csv", split="train[:0]")


def test_tables_without_rows_that_load_are_refused_as_well(texts, tmp_path, monkeypatch):
    # versions of `datasets` differ in what they make of an empty table
    import datasets

    texts.save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(datasets, "load_from_disk", lambda path: texts.select([]))
    with pytest.raises(ValueError, match="saved' has no rows"):
        load_data(tmp_path / "saved")


def test_a_file_that_is_no_data_says_what_is_wrong(tmp_path):
    (tmp_path / "rows.parquet").write_text("these are no rows")
    with pytest.raises(ValueError, match=r"Data set '.*rows\.parquet' could not be (read|loaded): .*[Pp]arquet"):
        load_data(tmp_path / "rows.parquet")


def test_unknown_configuration_lists_those_there_are(texts, tmp_path):
    texts.to_csv(tmp_path / "train.csv")
    with pytest.raises(ValueError, match="could not be loaded: BuilderConfig 'de' not found"):
        load_data(tmp_path, config_name="de")


# -- find_columns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "inputs", "label"),
    [
        ({"text": "a", "label": 1, "label_name": "x"}, ("text",), "label"),
        ({"idx": 3, "sentence1": "a", "sentence2": "b", "labels": 1}, ("sentence1", "sentence2"), "labels"),
        ({"headline": "a", "label": "sport"}, ("headline",), "label"),
        ({"premise": "a", "hypothesis": "b", "genre": "c", "target": 1}, ("premise", "hypothesis"), "target"),
    ],
)
def test_text_and_label_are_found(row, inputs, label):
    assert find_columns([row], "text") == Columns("text", inputs, label)


def test_image_and_class_label_are_found_by_type(images):
    assert find_columns(images.rename_columns({"image": "scan", "label": "animal"}), "image") == Columns(
        "image", ("scan",), "animal"
    )
    assert find_columns([images[0]], "image").inputs == ("image",)


def test_named_columns_are_taken_as_they_are():
    row = {"a": "x", "b": "y", "kind": 1, "label": 0}
    assert find_columns([row], "text", text_column=["a", "b"], label_column="kind") == Columns(
        "text", ("a", "b"), "kind"
    )


@pytest.mark.parametrize(
    ("row", "arguments", "message"),
    [
        ({"a": "x", "b": "y", "label": 0}, {}, r"2 columns could be the text \('a', 'b'\).*--text_column a"),
        ({"a": 1.5, "label": 0}, {}, r"No column looks like the text. The columns are 'a', 'label'"),
        ({"text": "x", "mood": 0}, {}, r"No column looks like the label.*'text', 'mood'.*--label_column text"),
        ({"text": "x", "label": 0, "labels": 0}, {}, r"2 columns could be the label"),
        ({"text": "x", "label": 0}, {"text_column": "txt"}, "text_column='txt' is not a column.*'text', 'label'"),
        ({"text": "x", "label": 0}, {"label_column": "lbl"}, "label_column='lbl' is not a column"),
        ({"a": "x", "b": "x", "c": "x"}, {"text_column": ["a", "b", "c"]}, "text_column names 3 columns"),
    ],
)
def test_columns_that_cannot_be_found(row, arguments, message):
    with pytest.raises(ValueError, match=message):
        find_columns([row], "text", **arguments)


def test_label_is_optional_for_measuring():
    row = {"text": "x", "mood": 0}
    assert find_columns([row], "text", need_label=False).label is None


def test_text_data_for_an_image_model(texts):
    with pytest.raises(ValueError, match=r"No column looks like the image.*--image_column"):
        find_columns(texts, "image")


# -- labels -------------------------------------------------------------------------------------------------------


def test_classes_are_translated_by_name(images):
    config = BertConfig(num_labels=2, id2label={0: "Dog", 1: "Cat"})
    assert label_ids(images, "label", config) == {0: 1, 1: 0}
    strings = Dataset.from_dict({"label": ["cat", "dog", "cat"]})
    assert label_ids(strings, "label", config) == {"cat": 1, "dog": 0}
    assert find_label_names(strings, "label") == ["cat", "dog"]


def test_numbers_without_names_are_the_model_s_own(texts, images):
    assert label_ids(texts, "label", BertConfig(num_labels=5)) == {0: 0, 1: 1, 2: 2}
    assert label_ids(images, "label", BertConfig(num_labels=2)) == {0: 0, 1: 1}
    assert find_label_names(texts, "label") == ["0", "1", "2"]


def test_labels_that_the_model_does_not_have(texts, images):
    with pytest.raises(ValueError, match=r"holds 3 labels, the model has 2 \(the largest number in the data is 2\)"):
        label_ids(texts, "label", BertConfig(num_labels=2))
    with pytest.raises(ValueError, match="holds 2 labels, the model has 7"):
        label_ids(images, "label", BertConfig(num_labels=7))
    strings = Dataset.from_dict({"label": ["cat", "dog"]})
    with pytest.raises(ValueError, match=r"holds 2 labels, the model has 2 and none of its own is named 'cat', 'dog'"):
        label_ids(strings, "label", BertConfig(num_labels=2))


@pytest.mark.parametrize(("values", "shown"), [([0.5, 1.0], "0.5"), ([-1, 0], "-1"), ([None, 1], "None")])
def test_values_that_are_no_classes(values, shown):
    with pytest.raises(ValueError, match=rf"Column 'y' holds {shown}, which is no class"):
        label_ids(Dataset.from_dict({"y": values}), "y", BertConfig(num_labels=2))


# -- preprocess ---------------------------------------------------------------------------------------------------


def test_text_is_cut_to_the_limit_and_not_padded(texts, tokenizer, make_bert):
    columns = find_columns(texts, "text")
    ready = preprocess(texts, tokenizer, columns, make_bert())
    assert [len(ids) for ids in ready["input_ids"][:6]] == [1, 2, 3, 4, 4, 4]
    assert ready["labels"] == texts["label"]
    assert "text" not in ready.column_names
    shorter = preprocess(texts, tokenizer, columns, max_length=2)
    assert max(len(ids) for ids in shorter["input_ids"]) == 2
    assert "labels" not in shorter.column_names


def test_labels_become_the_model_s_numbers(tokenizer, make_bert):
    data = Dataset.from_dict({"text": ["red", "two"], "label": ["warm", "cold"]})
    model = make_bert(num_labels=2, id2label={0: "cold", 1: "warm"})
    assert preprocess(data, tokenizer, find_columns(data, "text"), model)["labels"] == [1, 0]


def test_pairs_go_in_together(tokenizer):
    pairs = Dataset.from_dict({"sentence1": ["red"], "sentence2": ["two three"], "label": [0]})
    assert preprocess(pairs, tokenizer, find_columns(pairs, "text"))["input_ids"] == [[2, 6, 7]]


def test_images_are_processed_when_they_are_read(images, make_vit):
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    ready = preprocess(images, processor, find_columns(images, "image"), make_vit(num_channels=3, num_labels=2))
    assert len(ready) == 10
    assert tuple(ready[3]["pixel_values"].shape) == (3, 8, 8)  # (channels, height, width)
    assert [example["labels"] for example in ready.__getitems__([1, 2])] == [1, 0]


def test_processed_images_go_through_a_trainer_as_it_is(images, make_vit, tmp_path):
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    model = make_vit(num_hidden_layers=1, num_channels=3, num_labels=2)
    ready = preprocess(images, processor, find_columns(images, "image"), model)
    arguments = TrainingArguments(tmp_path, max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True)
    assert Trainer(model, arguments, train_dataset=ready).train().global_step == 1


def test_grey_images_for_a_grey_model(images, make_vit):
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    ready = preprocess(images, processor, find_columns(images, "image"), make_vit(num_labels=2))
    assert tuple(ready[0]["pixel_values"].shape) == (1, 8, 8)


def test_empty_cells_and_unlabelled_examples_are_refused(tokenizer, make_bert):
    data = Dataset.from_dict({"text": ["red", None], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"Column 'text' is empty \(None\) in 1 of 2 examples"):
        preprocess(data, tokenizer, find_columns(data, "text"))
    unlabelled = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    data = Dataset.from_dict({"text": ["red"], "label": [-1]}, features=unlabelled)
    model = make_bert(num_labels=2, id2label={0: "a", 1: "b"})
    with pytest.raises(ValueError, match=r"Column 'label' holds -1, which is none of the 2 labels of the model: 0, 1"):
        preprocess(data, tokenizer, find_columns(data, "text"), model)


@pytest.mark.parametrize(
    ("tokenizer_limit", "positions", "expected"),
    [(512, 512, 512), (512, 514, 512), (10**30, 514, 512), (10**30, None, None), (64, 512, 64), (512, -1, 512)],
)
def test_longest_text_that_both_take(tokenizer_limit, positions, expected):
    tokenizer = SimpleNamespace(model_max_length=tokenizer_limit)
    assert find_max_length(tokenizer, SimpleNamespace(max_position_embeddings=positions)) == expected


def test_processing_class_that_reads_neither():
    with pytest.raises(ValueError, match=r"processing_class=Features reads neither text nor images"):
        find_kind(Features())


# -- calibration_loader -------------------------------------------------------------------------------------------


def test_raw_text_becomes_padded_batches_of_model_inputs(texts, tokenizer, make_bert):
    model = make_bert()
    batches = loader_of(texts, processing_class=tokenizer, model=model)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4]
    assert all("labels" not in batch and "text" not in batch for batch in batches)
    assert model(**batches[0]).logits.shape == (4, 3)


def test_raw_images_become_pixels(images, make_vit):
    model = make_vit(num_channels=3)
    batches = loader_of(images, processing_class=ViTImageProcessorPil(size={"height": 8, "width": 8}), model=model)
    assert tuple(batches[0]["pixel_values"].shape) == (4, 3, 8, 8)
    assert model(**batches[0]).logits.shape == (4, 10)


def test_model_ready_data_keeps_what_forward_takes(make_bert):
    ready = Dataset.from_dict(
        {"input_ids": [[1, 2, 3]] * 9, "note": ["x"] * 9, "idx": list(range(9)), "label": [0] * 9}
    )
    assert set(loader_of(ready, model=make_bert())[0]) == {"input_ids"}
    # without a model nobody knows what it takes: only what is no number goes
    assert set(loader_of(ready)[0]) == {"input_ids", "idx", "labels"}


def test_labels_feed_a_decoder(tokenizer):
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    ready = [{"input_ids": [1] * (1 + i % 3), "labels": [1] * (2 + i % 2)} for i in range(6)]
    batch = loader_of(ready, processing_class=tokenizer, model=model)[0]
    assert batch["labels"].min() == -100  # padded labels, which the loss skips
    assert model(**batch).loss.isfinite()


def test_labels_are_kept_where_they_are_asked_for_and_taken(make_bert):
    ready = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 9, "note": ["x"] * 9, "idx": [0] * 9, "label": [2] * 9})
    model = make_bert()
    (batch, _) = loader_of(ready, model=model, keep_labels=True)
    assert set(batch) == {"input_ids", "labels"}
    assert model(**batch).loss.isfinite()
    # the body takes none
    assert set(loader_of(ready, model=model.base_model, keep_labels=True)[0]) == {"input_ids"}


def test_classes_of_raw_data_are_kept_for_a_classifier(texts, images, tokenizer, make_bert, make_vit):
    model = make_bert()
    batches = loader_of(texts, processing_class=tokenizer, model=model, keep_labels=True)
    plain = loader_of(texts, processing_class=tokenizer, model=model)
    for batch, other in zip(batches, plain, strict=True):
        assert set(batch) - set(other) == {"labels"}
        assert torch.equal(batch["input_ids"], other["input_ids"])
        lengths = batch["attention_mask"].sum(1)  # a text of n words has label (n - 1) % 3, and is cut to 4 words
        assert torch.equal(batch["labels"][lengths < 4], lengths[lengths < 4] - 1)
    # the data says cat and dog, the model dog and cat
    vit = make_vit(num_channels=3, num_labels=2, id2label={0: "dog", 1: "cat"}, label2id={"dog": 0, "cat": 1})
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, do_rescale=False, do_normalize=False)
    batch = loader_of(images, processing_class=processor, model=vit, keep_labels=True)[0]
    numbers = batch["pixel_values"].float().mean((1, 2, 3)) / 20
    assert torch.equal(batch["labels"], 1 - numbers.round().long() % 2)


def test_classes_of_raw_texts_are_no_labels_of_a_language_model(texts, tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    batch = loader_of(texts, processing_class=tokenizer, model=model, keep_labels=True)[0]
    assert "labels" not in batch
    assert "input_ids" in batch


def test_sample_is_seeded_without_replacement_and_even(texts):
    ready = Dataset.from_dict({"input_ids": [[i] for i in range(33)]})
    batches = loader_of(ready, num_samples=33, batch_size=32)
    assert [len(batch["input_ids"]) for batch in batches] == [17, 16]
    drawn = torch.cat([batch["input_ids"] for batch in batches]).flatten().tolist()
    assert sorted(drawn) == list(range(33))
    assert drawn != list(range(33))

    def first(seed: int) -> list[int]:
        return loader_of(ready, seed=seed)[0]["input_ids"].flatten().tolist()

    assert first(1) == first(1) != first(2)


def test_the_global_random_state_is_untouched(texts, tokenizer):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    loader = calibration_loader(texts, processing_class=tokenizer, num_samples=8, batch_size=4, seed=3)
    first, second = ([batch["input_ids"].tolist() for batch in loader] for _ in range(2))
    assert first == second
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("form", ["list", "torch", "stream", "generator", "columns", "to_iterable"])
def test_every_form_of_examples(form):
    class Squares(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.full((3,), index)}

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows)

    rows = [{"input_ids": [i] * 3} for i in range(12)]
    data = {
        "list": rows,
        "torch": Squares(),
        "stream": Stream(),
        "generator": (row for row in rows),
        "columns": {"input_ids": [[i] * 3 for i in range(12)]},
        "to_iterable": Dataset.from_list(rows).to_iterable_dataset(),
    }[form]
    batches = loader_of(data)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 3), (4, 3)]
    if form in ("stream", "generator", "to_iterable"):
        # what has no length is read from its start
        assert sorted(torch.cat([batch["input_ids"] for batch in batches])[:, 0].tolist()) == list(range(8))


@pytest.mark.parametrize("form", ["loader", "list", "generator", "one"])
def test_batches_are_handed_on_until_there_are_enough(form):
    batches = [{"input_ids": torch.full((4, 3), i)} for i in range(5)]
    examples = [{"input_ids": torch.full((3,), i // 4)} for i in range(20)]
    data = {
        "loader": DataLoader(examples, batch_size=4),
        "list": batches,
        "generator": (batch for batch in batches),
        "one": batches[0],
    }[form]
    loader = calibration_loader(data, num_samples=7, batch_size=32, seed=0)
    for _ in range(2):  # a generator, too, can be read again in the second round
        assert [batch["input_ids"][0, 0].item() for batch in loader] == ([0] if form == "one" else [0, 1])


def test_own_collator_gets_the_examples_as_they_are(texts, tokenizer):
    def collate(rows: list[dict[str, object]]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[len(row["text"])] for row in rows])}

    assert tuple(loader_of(texts, collate_fn=collate)[0]["input_ids"].shape) == (4, 1)
    ready = preprocess(texts, tokenizer, find_columns(texts, "text"))
    assert len(loader_of(ready, collate_fn=DataCollatorWithPadding(tokenizer))) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "The calibration data is empty"),
        (iter(()), "The calibration data is empty"),
        ([(1, 2), (3, 4)], "A calibration example is a tuple, not a mapping"),
        (DataLoader(TensorDataset(torch.ones(4, 3))), "A calibration batch is a list, not a mapping"),
        (DataLoader([]), "The calibration loader gave no batch"),
        ([{"text": "red"}], "hold 'text', which is no model input. Pass processing_class=tokenizer"),
        ([{"input_ids": [1]}, {"input_ids": [1, 2]}], "No batch could be made of the calibration columns 'input_ids'"),
        (DatasetDict(train=Dataset.from_dict({"a": [1]})), r"is a dict of 'train', not one data set.*data\['train'\]"),
    ],
    ids=["empty", "dry", "tuples", "unnamed batches", "empty loader", "raw", "ragged", "splits"],
)
def test_calibration_data_that_cannot_be_used(data, message):
    with pytest.raises(CalibrationError, match=message):
        loader_of(data)


def test_ambiguous_raw_text_says_what_to_select(tokenizer):
    with pytest.raises(CalibrationError, match=r"2 columns could be the text.*dataset.select_columns\(\['NAME'\]\)"):
        loader_of([{"a": "red", "b": "blue"}], processing_class=tokenizer)
