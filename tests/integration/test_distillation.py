"""Recovery with the uncut model as teacher: the step is the one by hand, the verdict does not see it, a resume finds it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_mpruner import LayerPruningCallback, PruningConfig, PruningPlan, apply_plan_
from hf_mpruner.errors import MPrunerError, UnsupportedBackendError
from hf_mpruner.plan import StackPlan
from hf_mpruner.recovery.teacher import TEACHER_NAME
from trainer_kit import CHECKPOINTING, STACK, Rows, Scripted, Spy, add, assert_same, build_trainer, everything

# The protected last layer runs on other inputs than in the teacher, so its outputs differ from the first step on.
PLAN = PruningPlan({STACK: StackPlan(4, (0, 3))})


def bert(**config):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "problem_type": "single_label_classification", "initializer_range": 0.3, **config,
    }  # fmt: skip
    return BertForSequenceClassification(BertConfig(**settings))


def first_step(trainer):
    """The weights after the first step of training."""
    found = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if not found:
                found.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    trainer.add_callback(Keep())
    return found


def soft(student, teacher, temperature):
    p, q = log_softmax(student / temperature, -1), log_softmax(teacher / temperature, -1)
    return temperature**2 * kl_div(p, q, reduction="none", log_target=True).sum(-1)


PLAIN_SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_a_step_is_the_one_by_hand(tmp_path, accumulation, hidden):
    settings = {**PLAIN_SGD, "num_train_epochs": 1, "gradient_accumulation_steps": accumulation}
    trainer = build_trainer(bert(), tmp_path, Scripted(0.9, 0.9), **settings)
    add(
        trainer,
        distillation_weight=0.75,
        distillation_temperature=3.0,
        distillation_hidden_weight=hidden,
        protect=[3],
        max_rounds=1,
    )
    batches = []
    trainer.add_callback(Seen(trainer, batches))
    weights = first_step(trainer)
    trainer.train()

    teacher, student = bert().eval(), bert()
    apply_plan_(student, PLAN)
    loss = 0.0
    for batch in batches[:accumulation]:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        mine = student(**inputs, output_hidden_states=True)
        with torch.no_grad():
            its = teacher(**inputs, output_hidden_states=True)
        part = 0.25 * cross_entropy(mine.logits, batch["labels"])
        part = part + 0.75 * soft(mine.logits, its.logits, 3.0).mean()
        mask = batch["attention_mask"].bool()
        first, last = (
            (mine.hidden_states[m] - its.hidden_states[t]).square().mean(-1)[mask].mean() for m, t in ((1, 1), (2, 4))
        )
        assert first == 0 < last
        part = part + hidden * (first + last) / 2
        # Transformers itself adds up the means of BERT's classifier over accumulated batches; the teacher's part follows.
        loss = loss + part
    loss.backward()
    alone = bert()
    apply_plan_(alone, PLAN)
    cross_entropy(alone(**inputs).logits, batch["labels"]).backward()
    unlike = [
        (a.grad - b.grad).abs().max()
        for a, b in zip(alone.parameters(), student.parameters(), strict=True)
        if a.grad is not None
    ]
    assert max(unlike) > 1e-2  # a hundred times what the comparison below lets pass
    for name, param in student.named_parameters():
        expected = param.detach() - 0.1 * (0.0 if param.grad is None else param.grad)
        torch.testing.assert_close(
            weights[0][name], expected, atol=5e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


class Seen(TrainerCallback):
    """Remembers the batches that the model is trained on."""

    def __init__(self, trainer, batches):
        original = trainer.training_step

        def training_step(model, inputs, *args, **kwargs):
            batches.append({name: value.clone() for name, value in inputs.items()})
            return original(model, inputs, *args, **kwargs)

        trainer.training_step = training_step


def teach(trainer, data, **config):
    """The pruning callback on other data than rows with classes."""
    trainer.train_dataset, trainer.eval_dataset = data(24, 0), data(16, 1)
    settings = PruningConfig(threshold=0.0, calibration_samples=16, max_rounds=1, **config)
    callback = LayerPruningCallback(trainer, settings, calibration=data(16, 2))
    trainer.add_callback(callback)
    return callback


class Numbers(Rows):
    """Two numbers a row."""

    def __init__(self, size, seed):
        super().__init__(size, seed)
        for row in self.rows:
            row["labels"] = torch.tensor([float(row["labels"]), 0.5])


class Texts(Rows):
    """Token sequences that are their own labels, padded with -100."""

    def __init__(self, size, seed):
        super().__init__(size, seed)
        for row in self.rows:
            row["labels"] = row["input_ids"].masked_fill(row["attention_mask"] == 0, -100)


def test_a_causal_step_counts_the_tokens_of_all_batches(tmp_path):
    def llama():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=99, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24
            )
        )

    settings = {**PLAIN_SGD, "num_train_epochs": 1, "gradient_accumulation_steps": 3}
    trainer = build_trainer(llama(), tmp_path, None, **settings)
    teach(trainer, Texts, distillation_weight=0.5, metric="loss", max_metric_drop=99.0)
    batches = []
    trainer.add_callback(Seen(trainer, batches))
    weights = first_step(trainer)
    trainer.train()

    teacher, student = llama().eval(), llama()
    apply_plan_(student, PruningPlan({"model.layers": StackPlan(3, (0,))}))
    total, tokens = 0.0, 0
    for batch in batches[:3]:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        mine, labels = student(**inputs).logits[:, :-1], batch["labels"][:, 1:]
        with torch.no_grad():
            its = teacher(**inputs).logits[:, :-1]
        real = labels != -100
        total = total + 0.5 * cross_entropy(mine[real], labels[real], reduction="sum")
        total = total + 0.5 * soft(mine, its, 2.0)[real].sum()
        tokens += int(real.sum())
    (total / tokens).backward()
    for name, param in student.named_parameters():
        torch.testing.assert_close(
            weights[0][name],
            param.detach() - 0.1 * param.grad,
            atol=1e-6,
            rtol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_an_encoder_decoder_model_learns_from_its_teacher(tmp_path):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=99,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=3,
        num_heads=2,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    trainer = build_trainer(T5ForConditionalGeneration(config), tmp_path, None, num_train_epochs=1)
    weights = {"distillation_weight": 1.0, "distillation_hidden_weight": 0.1}
    callback = teach(trainer, Texts, **weights, metric="loss", max_metric_drop=99.0)
    losses = Spy(on_step_end=lambda: float(trainer._tr_loss))
    trainer.add_callback(losses)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"
    assert {path: len(layers) for path, layers in callback.plan.kept.items()} == {
        "encoder.block": 1,
        "decoder.block": 1,
    }
    assert losses.seen["on_step_end"][0] > 0


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_other_problems_are_taught_too(tmp_path, problem):
    """With the teacher's word alone, a student that is the teacher learns nothing, any other does."""
    model = bert(problem_type=problem, num_labels=2)

    trainer = build_trainer(model, tmp_path, Scripted(0.9, 0.9), num_train_epochs=1)
    teach(trainer, Numbers, distillation_weight=1.0)
    look = Spy(on_step_end=lambda: float(trainer._tr_loss))
    trainer.add_callback(look)
    trainer.train()
    assert look.seen["on_step_end"][0] > 1e-8


def test_the_verdict_is_by_the_tasks_own_loss_and_nothing_stays_behind(tmp_path):
    losses = []
    for weight in (0.0, 0.5):
        trainer = build_trainer(bert(), tmp_path / str(weight), None, num_train_epochs=2, learning_rate=0.0)
        callback = add(trainer, distillation_weight=weight, metric="loss", max_metric_drop=99.0, max_rounds=1)
        trainer.train()
        losses.append(callback.record.rounds[0].after.metric)
        assert not {"compute_loss", "_get_learning_rate"} & set(vars(trainer))
        assert (tmp_path / str(weight) / TEACHER_NAME).is_dir() == (weight > 0)
    assert losses[0] == losses[1]


def test_a_teacher_in_half_precision_takes_half_the_room_and_says_nearly_the_same(tmp_path):
    sizes, weights = [], []
    for dtype in (None, "bfloat16"):
        settings = {**PLAIN_SGD, "num_train_epochs": 1}
        trainer = build_trainer(bert(), tmp_path / str(dtype), Scripted(0.9, 0.9), **settings)
        add(trainer, distillation_weight=1.0, teacher_dtype=dtype, max_rounds=1)
        found = first_step(trainer)
        trainer.train()
        weights.append(found[0])
        sizes.append((tmp_path / str(dtype) / TEACHER_NAME / "model.safetensors").stat().st_size)
        assert trainer.model.dtype == torch.float32
    assert sizes[1] < 0.7 * sizes[0]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], tensor, atol=1e-3, rtol=1e-2, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert any(not torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


SETTINGS = {
    "distillation_weight": 0.5, "distillation_hidden_weight": 0.1, "learning_rate_policy": "restart",
    "recovery_learning_rate": 3e-3, "granularity": 2, "max_rounds": 2,
}  # fmt: skip


def run(folder, values, checkpoint=None, **training):
    settings = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3, CHECKPOINTING: True, **training}
    trainer = build_trainer(bert(), folder, Scripted(*values), **settings)
    callback = add(trainer, **SETTINGS)
    trainer.train(resume_from_checkpoint=checkpoint)
    return copy.deepcopy(everything(trainer)), [round_.verdict for round_ in callback.record.rounds]


def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    whole, verdicts = run(tmp_path, (0.9, 0.1, 0.9))
    assert verdicts == ["rejected", "accepted"]
    for step, values in ((1, (0.1, 0.9)), (3, (0.1, 0.9)), (5, (0.9,)), (8, ())):
        resumed, again = run(tmp_path, values, str(tmp_path / f"checkpoint-{step}"))
        assert_same(whole, resumed)
        assert again == verdicts


def test_a_teacher_that_is_lost_or_changed_is_an_error_that_names_it(tmp_path):
    run(tmp_path, (0.9, 0.1, 0.9))
    weights = tmp_path / TEACHER_NAME / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(MPrunerError, match=r"_mpruner_teacher' is not the one that this run began with"):
        run(tmp_path, (0.1, 0.9), str(tmp_path / "checkpoint-2"))
    weights.unlink()
    weights.parent.joinpath("config.json").unlink()
    weights.parent.rmdir()
    with pytest.raises(MPrunerError, match=r"_mpruner_teacher' is missing.*begin anew"):
        run(tmp_path, (0.1, 0.9), str(tmp_path / "checkpoint-2"))


def test_a_run_that_began_without_a_teacher_gets_none_later(tmp_path):
    saving = {"save_strategy": "epoch", "num_train_epochs": 2}
    trainer = build_trainer(bert(), tmp_path, Scripted(0.9, 0.9, 0.9), **saving)
    add(trainer, granularity=3)
    trainer.train()
    trainer = build_trainer(bert(), tmp_path, Scripted(0.9), **saving)
    add(trainer, granularity=3, distillation_weight=0.5)
    with pytest.raises(MPrunerError, match=r"cut the model without a teacher so far.*distillation_weight=0"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_full_disk_leaves_the_training_as_it_was(tmp_path, monkeypatch):
    trainer = build_trainer(bert(), tmp_path, Scripted(0.9))
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    callback = add(trainer, distillation_weight=0.5)
    monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", full)
    with pytest.raises(MPrunerError, match=r"teacher cannot be written.*No space left"):
        trainer.train()
    assert list(tmp_path.iterdir()) == []
    assert callback.record.rounds == []
    assert all(torch.equal(tensor, start[name]) for name, tensor in trainer.model.state_dict().items())


class Lossless(BertForSequenceClassification):
    """A model that leaves the loss to others."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        return SequenceClassifierOutput(logits=super().forward(input_ids, attention_mask).logits)


def test_a_trainer_with_a_loss_of_its_own(tmp_path):
    torch.manual_seed(0)
    trainer = build_trainer(Lossless(bert().config), tmp_path, Scripted(0.9, 0.9), num_train_epochs=1)

    def compute_loss(model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss

    trainer.compute_loss = compute_loss
    callback = add(trainer, distillation_weight=0.5, max_rounds=1)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"
    assert trainer.compute_loss is compute_loss


class Silent(BertForSequenceClassification):
    """A model whose outputs hold no logits."""

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        if self.training:
            return SequenceClassifierOutput(loss=outputs.loss)
        return outputs


def test_without_logits_the_way_out_is_named(tmp_path):
    torch.manual_seed(0)
    trainer = build_trainer(Silent(bert().config), tmp_path, Scripted(0.9))
    add(trainer, distillation_weight=0.5)
    with pytest.raises(
        MPrunerError, match=r"outputs of Silent hold none \(they hold loss\).*distillation_hidden_weight"
    ):
        trainer.train()


@pytest.mark.parametrize(
    ("training", "pruning", "text"),
    [
        ({"torch_compile": True}, {"distillation_hidden_weight": 0.1}, "torch_compile"),
        (
            {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}},
            {"distillation_hidden_weight": 0.1},
            "use_reentrant=False",
        ),
    ],
)
def test_settings_that_hide_hidden_states_are_refused(tmp_path, training, pruning, text):
    trainer = build_trainer(bert(), tmp_path, **training)
    add(trainer, **pruning)
    with pytest.raises(UnsupportedBackendError, match=text):
        trainer.train()
