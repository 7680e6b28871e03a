"""Figures arrive where the Trainer's own integrations log, and nothing of that can end a training."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import WandbCallback

from hf_mpruner import tracking
from trainer_kit import STACK, Scripted, add, build_trainer

FIGURES = {f"mpruner/similarity_{STACK}", "mpruner/layers", "mpruner/metric", "mpruner/adjacent_similarity"}
AFTER = f"mpruner/similarity_after_{STACK}"
SCORES = (0.9, 0.1, 0.9)  # the uncut model, a rejected round, an accepted one


@pytest.fixture(autouse=True)
def _new_process():
    tracking._say_once.cache_clear()


def read_images(folder):
    """`{tag: {step: pixels}}` of all event files below a folder, with how many images there were."""
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    found, count = {}, 0
    for file in sorted(Path(folder).rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={IMAGES: 0})
        events.Reload()
        for tag in events.Tags()["images"]:
            for image in events.Images(tag):
                count += 1
                with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
                    found.setdefault(tag, {})[image.step] = picture.convert("RGB")
    return found, count


def run(make_bert, tmp_path, *callbacks, scores=SCORES, **arguments):
    trainer = build_trainer(
        make_bert(),
        tmp_path / "out",
        Scripted(*scores),
        callbacks=list(callbacks),
        **{"num_train_epochs": 2, **arguments},
    )
    callback = add(trainer, max_granularity=2)
    trainer.train()
    return trainer, callback


def test_tensorboard_gets_the_figures_of_every_round_and_of_what_was_kept(make_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    trainer, callback = run(make_bert, tmp_path, report_to=["tensorboard"])
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected", "accepted"]
    decided = [round_.decided_at_step for round_ in callback.record.rounds]
    images, count = read_images(tmp_path / "runs")
    assert decided == [3, 6]
    for tag in FIGURES:
        assert set(images[tag]) == set(decided)
        assert all(min(picture.size) > 150 for picture in images[tag].values())
    # the strip has a row more after the second round
    assert images["mpruner/layers"][6].height > images["mpruner/layers"][3].height
    # the Trainer closes its writer before the model that was kept is drawn
    assert set(images) == {*FIGURES, AFTER}
    assert set(images[AFTER]) == {6}
    assert count == 2 * 4 + 4  # four a round, and at the end the strip, the metric and the curves as well
    assert all(cb.tb_writer is None for cb in trainer.callback_handler.callbacks if hasattr(cb, "tb_writer"))


class Wandb:
    """Stands in for the module that `WandbCallback` keeps."""

    def __init__(self):
        self.logged, self.run = [], object()

    def Image(self, pixels):
        return ("image", pixels.shape)

    def log(self, values):
        self.logged.append(values)


class Stub(WandbCallback):
    """The real callback but for its module, which need not be installed."""

    def __init__(self, module):
        self._wandb, self._initialized = module, True

    def on_train_begin(self, *args, **kwargs):
        pass

    on_train_end = on_log = on_save = on_predict = on_train_begin


def test_wandb_gets_the_figures_of_every_round(make_bert, tmp_path):
    module = Wandb()
    run(make_bert, tmp_path, Stub(module))
    rounds = [values for values in module.logged if f"mpruner/similarity_{STACK}" in values]
    assert [values["train/global_step"] for values in rounds] == [3, 6]
    for values in rounds:
        assert set(values) == {*FIGURES, "train/global_step"}
        assert all(value[0] == "image" and value[1][2] == 3 for name, value in values.items() if name in FIGURES)


WANDB_RUN = """
import sys
sys.path[:0] = {paths}
import logging; logging.basicConfig()
import conftest
from pathlib import Path
import torch
from transformers import BertConfig, BertForSequenceClassification
from trainer_kit import Scripted, add, build_trainer
config = BertConfig(num_hidden_layers=4, hidden_size=32, intermediate_size=64, num_attention_heads=4, vocab_size=99, num_labels=3)
trainer = build_trainer(
    BertForSequenceClassification(config), "out", Scripted(0.9, 0.1, 0.9), num_train_epochs=2, report_to=["wandb"]
)
add(trainer, max_granularity=2)
trainer.train()
import wandb
wandb.finish()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb: pip install wandb")
def test_the_real_wandb_keeps_the_pictures_offline(tmp_path):
    paths = [str(Path(__file__).parents[1])]
    environment = {
        **os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", WANDB_RUN.format(paths=paths)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Figures were not logged" not in done.stderr
    pictures = {file.name.rsplit("_", 2)[0] for file in tmp_path.rglob("media/images/mpruner/*.png")}
    assert pictures == {name.removeprefix("mpruner/") for name in (*FIGURES, AFTER)}


def test_without_matplotlib_it_is_said_once(make_bert, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    module = Wandb()
    with caplog.at_level(logging.WARNING):
        run(make_bert, tmp_path, Stub(module))
    assert module.logged == []
    assert caplog.text.count("No figures are logged: ") == 1
    assert "pip install hf_mpruner[plots]" in caplog.text


class Broken(Wandb):
    def log(self, values):
        raise OSError("no space left")


def test_an_error_is_logged_and_the_training_goes_on(make_bert, tmp_path, monkeypatch, caplog):
    trainer, callback = run(make_bert, tmp_path, Stub(Broken()))
    assert trainer.state.global_step == 6
    assert callback.plan.kept[STACK] == (0, 2)
    assert "Figures were not logged to Stub: OSError: no space left" in caplog.text

    def draw(*args, **kwargs):
        raise ZeroDivisionError("a strange report")
        yield

    monkeypatch.setattr(tracking, "draw_figures", draw)
    tracking.log_figures(trainer, callback.record)
    assert "The figures of this round were not drawn: ZeroDivisionError: a strange report" in caplog.text


class Weights(TrainerCallback):
    """Remembers the weights and the random state that a training ends with."""

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.found = [parameter.detach().clone() for parameter in model.parameters()], torch.get_rng_state()


def test_figures_change_nothing_of_the_training_and_none_is_drawn_without_an_integration(
    make_bert, tmp_path, monkeypatch
):
    plain, watched = Weights(), Weights()
    with monkeypatch.context() as without:
        without.setattr(tracking, "draw_figures", lambda *args, **kwargs: pytest.fail("something was drawn"))
        run(make_bert, tmp_path / "plain", plain)
    run(make_bert, tmp_path / "watched", Stub(Wandb()), watched)
    assert all(torch.equal(a, b) for a, b in zip(plain.found[0], watched.found[0], strict=True))
    assert torch.equal(plain.found[1], watched.found[1])
