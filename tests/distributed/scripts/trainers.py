"""Two processes under DDP, trl's `SFTTrainer` and a `SentenceTransformerTrainer`: cut, taken back, a teacher, a loss."""

from __future__ import annotations

import os
import warnings

from torch import distributed

import sentence_kit
import sft_kit
from distributed_kit import OUTPUT, digest, failure, write
from text_kit import make_tokenizer

warnings.filterwarnings("ignore", message=".*gradient_checkpointing")
FOUND = {}
# before there is a process group: in one, only the main process saves
BERT = sentence_kit.save_bert(OUTPUT / f"bert{os.environ['RANK']}")


def facts(trainer, callback):
    return {
        "rounds": [(round_.verdict, *round_.kept.values()) for round_ in callback.record.rounds],
        "digest": digest(trainer.model),
        "wrapper": type(trainer.model_wrapped).__name__,
    }


def sft(name, losses=None, config=None, **arguments):
    trainer = sft_kit.build(make_tokenizer(), OUTPUT / name, num_train_epochs=2, max_length=32, **arguments)
    if losses:
        evaluate, values = trainer.evaluate, iter(losses)
        trainer.evaluate = lambda **kwargs: {**evaluate(**kwargs), "mpruner_loss": next(values)}
    callback = sft_kit.add(trainer, metric="loss", **(config or {}))
    trainer.train()
    FOUND[name] = facts(trainer, callback)


def sentence(name, **arguments):
    evaluator = sentence_kit.Scripted(0.9, 0.1, 0.88)
    model = sentence_kit.make_model(BERT)
    trainer = sentence_kit.build(model, OUTPUT / name, evaluator=evaluator, num_train_epochs=2, **arguments)
    callback = sentence_kit.add(trainer, max_rounds=2)
    trainer.train()
    FOUND[name] = facts(trainer, callback)


sft("packed", packing=True, config={"distillation_weight": 0.5})
sft("rejected", losses=[1.0, 9.0])
sentence("sentence")
FOUND["loss"] = failure(lambda: sentence("loss", loss=sentence_kit.softmax, train=sentence_kit.labelled()))
write(FOUND)
distributed.destroy_process_group()
