"""`Seq2SeqTrainer`: text that the model generates decides, by BLEU and ROUGE; both stacks are cut.

The text is the Zen of Python, which is where Python is: from the first words of a line the model writes the rest.
METEOR is left out: its reference code downloads WordNet.
"""

from __future__ import annotations

import codecs
import contextlib
import io

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_mpruner import LayerPruningCallback, PruningConfig

sacrebleu = pytest.importorskip("sacrebleu")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

ENCODER, DECODER = "encoder.block", "decoder.block"


def zen_lines():
    with contextlib.redirect_stdout(io.StringIO()):
        import this  # it prints itself
    return [line for line in codecs.decode(this.s, "rot13").splitlines() if len(line.split()) > 4]


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(zen_lines(), trainers.WordLevelTrainer(special_tokens=["<pad>", "</s>", "<unk>"]))
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def rows(tokenizer):
    pairs = [
        (line.split()[: len(line.split()) // 3 + 1], line.split()[len(line.split()) // 3 + 1 :])
        for line in zen_lines()
    ]
    return [
        {
            "input_ids": tokenizer(" ".join(start))["input_ids"],
            "attention_mask": [1] * len(tokenizer(" ".join(start))["input_ids"]),
            "labels": tokenizer(" ".join(rest))["input_ids"],
        }
        for start, rest in pairs
    ]


def scores_of(tokenizer):
    scorer = rouge_scorer.RougeScorer(["rougeL"])

    def compute(prediction):
        written, wanted = (
            tokenizer.batch_decode(ids * (ids > 0), skip_special_tokens=True)
            for ids in (prediction.predictions, prediction.label_ids)
        )
        rouge = [scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(written, wanted, strict=True)]
        return {"bleu": sacrebleu.corpus_bleu(written, [wanted]).score, "rougeL": sum(rouge) / len(rouge)}

    return compute


def train(tokenizer, folder, num_train_epochs, **config):
    """A T5 of 4 + 4 layers that knows its lines after 40 epochs of three steps, and then loses layers."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=4,
            num_decoder_layers=4,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
            dropout_rate=0.0,
        )
    )
    data = rows(tokenizer)
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            output_dir=str(folder), num_train_epochs=num_train_epochs, per_device_train_batch_size=8,
            per_device_eval_batch_size=16, learning_rate=3e-3, lr_scheduler_type="constant", report_to="none",
            use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no", eval_strategy="no", seed=1,
            predict_with_generate=True, generation_max_length=24, generation_num_beams=2,
        ),
        train_dataset=data, eval_dataset=data, data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=scores_of(tokenizer), processing_class=tokenizer,
    )  # fmt: skip
    settings = {"threshold": 0.0, "start_epoch": 40, "calibration_samples": 16, "max_rounds": 1, **config}
    callback = LayerPruningCallback(trainer, PruningConfig(**settings), calibration=data)
    trainer.add_callback(callback)
    asked = []
    generate = model.generate
    model.generate = lambda *args, **kwargs: (asked.append(kwargs), generate(*args, **kwargs))[1]
    trainer.train()
    del model.generate
    return trainer, callback, asked


@pytest.mark.parametrize(("metric", "unit"), [("bleu", 100.0), ("rougeL", 1.0)])
def test_generated_text_decides_that_both_stacks_stay_cut(tokenizer, tmp_path, metric, unit):
    trainer, callback, asked = train(
        tokenizer, tmp_path, 56, recovery_epochs=16, metric=metric, max_metric_drop=0.3 * unit
    )
    (round_,) = callback.record.rounds
    assert callback.record.baseline.metric > 0.8 * unit  # it did learn: a drop could be seen
    assert round_.verdict == "accepted"
    assert round_.after.metric > 0.5 * unit
    assert (len(trainer.model.encoder.block), len(trainer.model.decoder.block)) == (1, 1)
    # the Trainer's own generation settings are those of the verdict
    assert asked
    assert all((kwargs["max_length"], kwargs["num_beams"]) == (24, 2) for kwargs in asked)

    trainer.save_model(str(tmp_path / "saved"))
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    batch = trainer.data_collator(rows(tokenizer)[:4])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "max_length": 24}
    live = trainer.model.eval().generate(**inputs)
    assert torch.equal(live, loaded.generate(**inputs))
    assert torch.equal(live, loaded.generate(**inputs, use_cache=False))


def test_generated_text_that_gets_worse_takes_both_cuts_back(tokenizer, tmp_path):
    trainer, callback, _ = train(tokenizer, tmp_path, 41, recovery_epochs=1, metric="bleu", max_metric_drop=1.0)
    (round_,) = callback.record.rounds
    assert round_.kept == {ENCODER: [0], DECODER: [0]}
    assert round_.verdict == "rejected"
    assert round_.drop == pytest.approx(callback.record.baseline.metric - round_.after.metric)
    assert (len(trainer.model.encoder.block), len(trainer.model.decoder.block)) == (4, 4)
    assert trainer.evaluate()["eval_bleu"] == pytest.approx(callback.record.baseline.metric)
