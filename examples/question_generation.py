"""Fine-tune T5 to ask the question that an answer belongs to, then remove layers of its encoder and decoder.

This is the paper's experiment with T5-base on SQuAD (arXiv 2408.13482): threshold 0.99, 3 epochs of recovery a round, and
a drop of BLEU of 0.02 at most. BLEU decides, ROUGE-L and METEOR are measured with it. It downloads both; use a GPU:

    python examples/question_generation.py

Offline a small T5 writes what a Unicode character is put together of, from its name; a minute or two on two cores:

    python examples/question_generation.py --offline
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import nltk
import numpy as np
import torch
from datasets import DatasetDict, load_dataset
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    logging,
    set_seed,
)

from hf_mpruner import LayerPruningCallback, PruningConfig
from hf_mpruner.artifacts import write_artifacts

OFFLINE = {
    "epochs": 20,
    "recovery_epochs": 3,
    "learning_rate": 3e-3,
    "threshold": 0.95,
    "max_target_length": 32,
    "protect": [f"encoder.block:{layer}" for layer in (0, 2, 4, 6)],
}


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Options; `--offline` changes what the others are by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="small model and data, nothing is downloaded")
    parser.add_argument("--model", default="google-t5/t5-base", help="Hub id or folder")
    parser.add_argument("--dataset", default="rajpurkar/squad", help="with columns context, question and answers")
    parser.add_argument("--output_dir", default="question-generation-out", type=Path)
    parser.add_argument("--epochs", default=3, type=int, help="of fine-tuning, before anything is cut (%(default)s)")
    parser.add_argument("--recovery_epochs", default=3, type=int, help="between a cut and its verdict (%(default)s)")
    parser.add_argument("--learning_rate", default=5e-5, type=float, help="%(default)s")
    parser.add_argument("--threshold", default=0.99, type=float, help="CKA from which layers are alike (%(default)s)")
    parser.add_argument(
        "--max_metric_drop", default=0.02, type=float, help="largest drop of BLEU, in 0..1 (%(default)s)"
    )
    parser.add_argument("--max_target_length", default=48, type=int, help="tokens (%(default)s)")
    parser.add_argument(
        "--protect",
        nargs="*",
        default=[],
        metavar="STACK:LAYER",
        help="layers that stay. transformers' generate() needs a decoder that is no deeper than the encoder",
    )
    parser.add_argument("--max_examples", type=int, help="of each part (default: all)")
    if "--offline" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**OFFLINE)
    return parser.parse_args(argv)


def offline_model_and_data() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, DatasetDict]:
    """A T5 of 8 + 4 small layers with random weights, its tokenizer, and names of characters."""
    from offline_data import character_names, train_tokenizer

    data = character_names()
    tokenizer = train_tokenizer([*data["train"]["text"], *data["train"]["target"]], vocab_size=800, form="$A [EOS]")
    tokenizer.model_max_length = 24
    config = T5Config(
        vocab_size=len(tokenizer), num_layers=8, num_decoder_layers=4, d_model=64, d_kv=16, d_ff=128, num_heads=4,
        dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return T5ForConditionalGeneration(config), tokenizer, data


def hub_model_and_data(
    model_name: str, dataset_name: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, DatasetDict]:
    """A pretrained T5, its tokenizer, and contexts with questions: half of SQuAD's validation part judges."""
    data = load_dataset(dataset_name).map(
        lambda row: {
            "text": f"generate question: answer: {row['answers']['text'][0]} context: {row['context']}",
            "target": row["question"],
        }
    )
    halves = data["validation"].train_test_split(test_size=0.5, seed=0)
    data = DatasetDict({"train": data["train"], "validation": halves["train"], "test": halves["test"]})
    tokenizer = AutoTokenizer.from_pretrained(model_name, model_max_length=384)
    return AutoModelForSeq2SeqLM.from_pretrained(model_name), tokenizer, data.select_columns(["text", "target"])


def has_wordnet(*, may_download: bool) -> bool:
    """Whether METEOR can be computed: it looks up synonyms in WordNet, which nltk downloads."""
    try:
        nltk.corpus.wordnet.ensure_loaded()
    except LookupError:
        if not may_download or not nltk.download("wordnet", quiet=True):
            print("METEOR is left out: it needs WordNet. Get it with: python -m nltk.downloader wordnet")
            return False
    return True


def text_metrics(tokenizer: PreTrainedTokenizerBase, *, meteor: bool) -> Callable[..., dict[str, float]]:
    """Metrics of generated text, all in 0..1."""
    rouge = RougeScorer(["rougeL"], use_stemmer=True)

    def compute(prediction) -> dict[str, float]:
        ids = [
            np.where(ids >= 0, ids, tokenizer.pad_token_id) for ids in (prediction.predictions, prediction.label_ids)
        ]
        written, wanted = (tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in ids)
        pairs = list(zip(written, wanted, strict=True))
        metrics = {
            "bleu": corpus_bleu(written, [wanted]).score / 100,
            "rougeL": float(np.mean([rouge.score(right, text)["rougeL"].fmeasure for text, right in pairs])),
        }
        if meteor:
            metrics["meteor"] = float(np.mean([meteor_score([right.split()], text.split()) for text, right in pairs]))
        return metrics

    return compute


def main(argv: list[str] | None = None) -> None:
    """Fine-tune, prune, measure on examples that neither saw, save."""
    options = parse_options(argv)
    set_seed(0)
    logging.set_verbosity_error()
    if options.offline:
        torch.set_num_threads(1)  # tensors this small lose more by waiting for each other than they gain
        model, tokenizer, data = offline_model_and_data()
    else:
        model, tokenizer, data = hub_model_and_data(options.model, options.dataset)
    if options.max_examples:
        data = DatasetDict(
            {name: part.select(range(min(options.max_examples, len(part)))) for name, part in data.items()}
        )

    def encode(rows) -> dict[str, list]:
        inputs = tokenizer(rows["text"], truncation=True)
        targets = tokenizer(text_target=rows["target"], truncation=True, max_length=options.max_target_length)
        return {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "labels": targets["input_ids"],
        }

    data = data.map(encode, batched=True, remove_columns=["text", "target"])
    compute_metrics = text_metrics(tokenizer, meteor=has_wordnet(may_download=not options.offline))

    def make_trainer(epochs: int) -> Seq2SeqTrainer:
        args = Seq2SeqTrainingArguments(
            output_dir=str(options.output_dir / "training"),
            num_train_epochs=epochs,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            predict_with_generate=True,
            generation_max_length=options.max_target_length,
            save_strategy="no",
            report_to="none",
            seed=0,
            dataloader_pin_memory=torch.accelerator.is_available(),
        )
        return Seq2SeqTrainer(
            model,
            args,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            data_collator=DataCollatorForSeq2Seq(tokenizer, model),
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
        )

    # 1. A script that already works.
    trainer = make_trainer(options.epochs)
    trainer.train()
    before = trainer.predict(data["test"]).metrics

    # 2. The same with one line more. Encoder and decoder are two stacks; each round cuts both.
    trainer = make_trainer(10 * options.recovery_epochs)  # ten rounds at most
    config = PruningConfig(
        threshold=options.threshold,
        protect=options.protect,
        max_metric_drop=options.max_metric_drop,
        metric="bleu",
        recovery_epochs=options.recovery_epochs,
        learning_rate_policy="restart",
        stop_when_done=True,
    )
    callback = LayerPruningCallback(trainer, config, calibration=data["train"])
    trainer.add_callback(callback)
    trainer.train()
    after = trainer.predict(data["test"]).metrics

    # 3. What came of it: an ordinary checkpoint, and the evidence.
    folder = write_artifacts(
        options.output_dir / "model",
        model=trainer.model,
        processing_class=tokenizer,
        report=callback.report,
        config=config,
        overwrite=True,
    )
    print(f"\n{callback.report}\n\n{callback.plan}\n")
    for name in ("bleu", "rougeL", "meteor"):
        if f"test_{name}" in before:
            numbers = f"{before[f'test_{name}']:.4f} before, {after[f'test_{name}']:.4f} after"
            print(f"{name} on {len(data['test'])} test examples: {numbers}")
    print(f"AutoModelForSeq2SeqLM.from_pretrained('{folder}') loads it; plan and report lie beside it")


if __name__ == "__main__":
    main()
