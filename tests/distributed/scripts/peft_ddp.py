"""Two processes under DDP, of a model that carries adapters: cut, taken back, saved, resumed."""

from __future__ import annotations

import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from torch import distributed

from distributed_kit import OUTPUT, STACK, bert, digest, write
from trainer_kit import Scripted, add, build_trainer

IDS = torch.arange(2, 18).reshape(2, 8)
VALUES = (0.9, 0.1, 0.9)
FOUND = {}


def run(values, checkpoint=None, **training):
    base = bert()
    torch.manual_seed(1)
    config = LoraConfig(task_type="SEQ_CLS", r=2, layers_to_transform=[0, 2, 3, 5], init_lora_weights=False)
    model = get_peft_model(base, config)
    settings = {
        "per_device_train_batch_size": 4, "num_train_epochs": 3, "ddp_find_unused_parameters": False, **training
    }  # fmt: skip
    trainer = build_trainer(model, OUTPUT / "out", Scripted(*values), **settings)
    callback = add(trainer, granularity=2, calibration_batch_size=6, max_rounds=2)
    trainer.train(resume_from_checkpoint=checkpoint)
    held = {id(param) for group in trainer.optimizer.param_groups for param in group["params"]}
    facts = {
        "verdicts": [round_.verdict for round_ in callback.record.rounds],
        "kept": callback.record.kept[STACK],
        "layers": model.peft_config["default"].layers_to_transform,
        "digest": digest(model),
        "wrapper": type(trainer.model_wrapped).__name__,
        "wrapped": {id(p) for p in trainer.model_wrapped.parameters()} == {id(p) for p in model.parameters()},
        "trained": held == {id(param) for param in model.parameters() if param.requires_grad},
    }
    return trainer, facts


trainer, FOUND["whole"] = run(VALUES, save_strategy="steps", save_steps=1)
trainer.save_model(str(OUTPUT / "final"))
distributed.barrier()
loaded = AutoPeftModelForSequenceClassification.from_pretrained(OUTPUT / "final").eval()
with torch.no_grad():
    FOUND["equal"] = torch.equal(loaded(input_ids=IDS).logits, trainer.model.eval()(input_ids=IDS).logits)
for step, done in ((2, 1), (5, 2)):  # both with a cut pending
    _, FOUND[f"resumed {step}"] = run(VALUES[done:], str(OUTPUT / "out" / f"checkpoint-{step}"))
write(FOUND)
distributed.destroy_process_group()
