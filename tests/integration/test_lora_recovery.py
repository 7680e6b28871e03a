"""Recovery by adapters on the frozen model: exact rollback without copies, merged when kept, saved when it can be loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    TrainerCallback,
)

from hf_mpruner import PruningConfig
from hf_mpruner.errors import MPrunerError, UnsupportedBackendError
from hf_mpruner.recovery import LowRankAdapters
from trainer_kit import CHECKPOINTING, STACK, Rows, Scripted, Spy, add, assert_same, build_trainer, everything

pytest.importorskip("peft")


def bert(**config):
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=99, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            problem_type="single_label_classification", **config,
        )
    )  # fmt: skip


class Watch(TrainerCallback):
    """Looks at what trains, at the end of each step."""

    def __init__(self, trainer):
        self.trainer, self.trained, self.sizes = trainer, [], []

    def on_step_end(self, args, state, control, **kwargs):
        model, optimizer = self.trainer.model, self.trainer.optimizer
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        names = {name for name, p in model.named_parameters() if id(p) in held}
        assert names == {name for name, p in model.named_parameters() if p.requires_grad}
        self.trained.append(names)
        self.sizes.append(len(model.bert.encoder.layer))


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"optim": "sgd"}, {"optim": "adafactor"}, {"bf16": True}, {"gradient_accumulation_steps": 2},
        {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=lambda settings: "-".join(map(str, settings)) or "plain",
)  # fmt: skip
def test_a_rejected_round_leaves_no_trace_and_an_accepted_one_is_merged(tmp_path, settings):
    trainer = build_trainer(bert(), tmp_path, Scripted(0.9, 0.1, 0.9), **settings)
    before = {}

    class Remember(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if state.epoch < 2:
                before[state.epoch] = copy.deepcopy(everything(trainer))

    watch = Watch(trainer)
    trainer.add_callback(Remember())  # before ours: it sees the model that is about to be cut
    callback = add(trainer, recovery="lora", lora_rank=2, max_rounds=2)
    after = Spy(on_epoch_end=lambda: copy.deepcopy(everything(trainer)))
    trainer.add_callback(watch)
    trainer.add_callback(after)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected", "accepted"]
    assert_same(before[0], after.seen["on_epoch_end"][0])
    assert watch.sizes[0] == 1
    assert all(
        all("lora_" in name for name in names) and names for names in watch.trained[: len(watch.trained) * 2 // 3]
    )
    assert not any("lora_" in name for name in watch.trained[-1])  # the third epoch trains the whole model again
    assert [name for name in trainer.model.state_dict() if "lora" in name or "base_layer" in name] == []
    assert not hasattr(trainer.model, "peft_config")
    merged, uncut = after.seen["on_epoch_end"][1][0], before[0][0]
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, uncut[name])}
    assert changed
    assert all(".layer." in name and name.endswith("weight") and "LayerNorm" not in name for name in changed)


def test_merging_changes_no_output_beyond_rounding(tmp_path):
    trainer = build_trainer(bert(), tmp_path, Scripted(0.9, 0.9), num_train_epochs=1)
    batch = {name: torch.stack([row[name] for row in Rows(8, 5)]) for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def logits():
        trainer.model.eval()
        return trainer.model(**batch).logits

    seen = Spy(on_epoch_end=logits)
    trainer.add_callback(seen)
    callback = add(trainer, recovery="lora", recovery_learning_rate=0.1, max_rounds=1)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"
    torch.testing.assert_close(logits(), seen.seen["on_epoch_end"][0], atol=1e-6, rtol=1e-5)
    start = trainer.model.bert.encoder.layer[0].attention.self.query.weight
    assert not torch.equal(start, bert().bert.encoder.layer[0].attention.self.query.weight)


def test_the_snapshot_holds_no_weights(tmp_path):
    sizes = {}
    for recovery in ("full", "lora"):
        trainer = build_trainer(bert(), tmp_path, Scripted(0.9, 0.9), num_train_epochs=1)
        callback = add(trainer, recovery=recovery, max_rounds=1)
        look = Spy(on_step_begin=lambda callback=callback: callback.engine.cut.snapshot.num_bytes)
        trainer.add_callback(look)
        trainer.train()
        sizes[recovery] = look.seen["on_step_begin"][0]
        assert callback.record.rounds[0].after.parameters == trainer.model.num_parameters()  # without the adapters
    buffers = sum(buffer.nbytes for buffer in bert().buffers())
    assert sizes["lora"] == buffers < sizes["full"]


def test_saves_wait_for_the_verdict_and_load_anywhere(tmp_path, caplog):
    trainer = build_trainer(
        bert(), tmp_path, Scripted(0.9, 0.1, 0.9), save_strategy="steps", save_steps=1, num_train_epochs=3
    )
    callback = add(trainer, recovery="lora", max_rounds=2)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected", "accepted"]
    steps = sorted(int(folder.name.rpartition("-")[2]) for folder in tmp_path.glob("checkpoint-*"))
    assert steps == [3, 6, 7, 8, 9]  # 3 steps an epoch: those within a recovery are put off to its end
    assert sum("Saves wait" in message for message in caplog.messages) == 1
    for step in steps:
        _, info = BertForSequenceClassification.from_pretrained(
            tmp_path / f"checkpoint-{step}", output_loading_info=True
        )
        assert not any(info.values())
    last = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-9").state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_recovery_of_two_epochs_is_saved_after_its_second(tmp_path):
    trainer = build_trainer(bert(), tmp_path, Scripted(0.9, 0.9), save_strategy="epoch", num_train_epochs=3)
    add(trainer, recovery="lora", recovery_epochs=2, max_rounds=1)
    trainer.train()
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-9"]


def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    def run(values, checkpoint=None):
        saving = {"save_strategy": "epoch", "num_train_epochs": 3}
        trainer = build_trainer(bert(), tmp_path, Scripted(*values), **saving)
        callback = add(trainer, recovery="lora", max_rounds=2, learning_rate_policy="restart")
        trainer.train(resume_from_checkpoint=checkpoint)
        return everything(trainer), [round_.verdict for round_ in callback.record.rounds]

    whole, verdicts = run((0.9, 0.1, 0.9))
    for step, values in ((3, (0.9,)), (6, ())):
        resumed, again = run(values, str(tmp_path / f"checkpoint-{step}"))
        assert_same(whole, resumed)
        assert verdicts == again == ["rejected", "accepted"]


def test_an_interrupted_recovery_is_taken_back(tmp_path):
    trainer = build_trainer(bert(), tmp_path, Scripted(0.9))
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    class Stop(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    callback = add(trainer, recovery="lora")
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    callback.rollback()
    now = trainer.model.state_dict()
    assert now.keys() == start.keys()
    assert all(torch.equal(now[name], start[name]) for name in start)
    assert all(param.requires_grad for param in trainer.model.parameters())


def test_layers_of_conv1d_get_adapters_too(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=99, n_positions=16, n_embd=16, n_layer=3, n_head=2, pad_token_id=0, num_labels=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    trainer = build_trainer(GPT2ForSequenceClassification(config), tmp_path, Scripted(0.9, 0.9), num_train_epochs=1)
    callback = add(trainer, recovery="lora", lora_target_modules=["c_attn"], max_rounds=1)
    look = Spy(on_step_end=lambda: [name for name, p in trainer.model.named_parameters() if p.requires_grad])
    trainer.add_callback(look)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"
    names = look.seen["on_step_end"][0]
    assert len(names) == 2
    assert all("c_attn.lora_" in name for name in names)


def test_groups_of_ones_own_keep_their_place_and_the_adapters_get_the_rate_of_the_weights(tmp_path):
    model = bert()
    head = list(model.classifier.parameters())
    rest = [p for p in model.parameters() if all(p is not one for one in head)]
    optimizer = torch.optim.AdamW([{"params": head, "lr": 0.5}, {"params": rest, "lr": 1e-3}])
    trainer = build_trainer(model, tmp_path, Scripted(0.9, 0.1), num_train_epochs=1, optimizers=(optimizer, None))
    add(trainer, recovery="lora", max_rounds=1)
    look = Spy(on_step_end=lambda: [len(group["params"]) for group in trainer.optimizer.param_groups])
    trainer.add_callback(look)
    trainer.train()
    assert look.seen["on_step_end"][0] == [0, 12]  # six linear layers of the block that is left, two matrices each
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, len(rest)]


def test_layers_that_nobody_has_are_an_error_that_names_those_there(tmp_path):
    trainer = build_trainer(bert(), tmp_path, Scripted())  # nothing is evaluated before the error
    start = everything_of(trainer.model)
    add(trainer, recovery="lora", lora_target_modules=["q_proj"])
    with pytest.raises(MPrunerError, match=r"lora_target_modules=\['q_proj'\].*dense, key, query, value"):
        trainer.train()
    assert everything_of(trainer.model) == start


def everything_of(model):
    return {name: tensor.sum().item() for name, tensor in model.state_dict().items()}, len(model.bert.encoder.layer)


def test_what_saves_at_moments_of_its_own_is_refused_before_training(tmp_path):
    settings = {"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "accuracy"}
    trainer = build_trainer(bert(), tmp_path, **settings)
    add(trainer, recovery="lora")
    with pytest.raises(UnsupportedBackendError, match=r"save_strategy='best'.*Pass save_strategy=\"epoch\""):
        trainer.train()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"freeze_untouched": True}, "pass one of the two"),
        ({"recovery_epochs": 0}, "recovery_epochs=1 or more"),
        ({"lora_rank": 0}, "lora_rank=0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, text):
    with pytest.raises(ValueError, match=text):
        PruningConfig(recovery="lora", **config)


def test_without_peft_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    trainer = build_trainer(bert(), tmp_path)
    add(trainer, recovery="lora")
    with pytest.raises(MPrunerError, match=r"pip install 'hf_mpruner\[peft\]'"):
        trainer.train()


def test_adapters_leave_the_random_state_alone_and_are_the_same_each_time():
    from hf_mpruner.plan import PruningPlan, StackPlan

    plan = PruningPlan({STACK: StackPlan(4, (0, 1, 2, 3))})
    drawn = []
    for _ in range(2):
        model = bert()
        state = torch.get_rng_state()
        adapters = LowRankAdapters(2, 4, ["query"], seed=3)
        adapters.apply(model, None, plan)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append({name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name})
        torch.rand(7)
        adapters.undo()
    assert drawn[0]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
