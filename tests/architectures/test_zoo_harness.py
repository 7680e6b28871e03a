"""The zoo's checks can fail: a cut that is broken in one way is called wrong. The sweep outlives what types do to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from zoo import bench, checks, table
from zoo.checks import Verdict, check_specimen
from zoo.sweep import read_results, select_types, summarize, sweep
from zoo.tiny import Specimen

from hf_mpruner.architectures import Examination
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.surgery import ModelEdit


class BrokenEdit(ModelEdit):
    """A cut after which `spoil` does harm that the undo takes back."""

    def __init__(
        self, model: PreTrainedModel, kept: Mapping[str, Sequence[int]], *, found: Examination | None = None
    ) -> None:
        super().__init__(model, kept, found=found)
        self.model = model
        self.harm: list[tuple[dict[str, Any], str, Any]] = []

    def apply(self) -> None:
        super().apply()
        self.spoil()

    def undo(self) -> None:
        for place, name, old in reversed(self.harm):
            place[name] = old
        super().undo()

    def put(self, place: Any, name: str, value: Any) -> None:
        namespace = place if isinstance(place, dict) else vars(place)
        self.harm.append((namespace, name, namespace[name]))
        namespace[name] = value

    def spoil(self) -> None:
        """Nothing, in a class whose harm is elsewhere."""


class StaleConfig(BrokenEdit):
    """The number of layers is written nowhere."""

    def spoil(self) -> None:
        self.put(self.model.config, "num_hidden_layers", 5)


class OtherKind(BrokenEdit):
    """A kept layer becomes another in the config: the same names and shapes, another window."""

    def spoil(self) -> None:
        self.put(self.model.config, "rms_norm_eps", 0.1)


class OtherLayers(BrokenEdit):
    """Two of the kept layers change places."""

    def spoil(self) -> None:
        layers = self.model.model.layers._modules
        first, second = layers["0"], layers["1"]
        self.put(layers, "0", second)
        self.put(layers, "1", first)


class StaleNumbers(BrokenEdit):
    """Layers keep their old number, by which the cache is addressed."""

    def spoil(self) -> None:
        for layer in self.model.model.layers:
            self.put(layer.self_attn, "layer_idx", 0)


class OtherBits(BrokenEdit):
    """A weight that stays is touched, and not put back."""

    def spoil(self) -> None:
        with torch.no_grad():
            self.model.model.norm.weight.add_(0.01)


class Frozen(BrokenEdit):
    """A weight that stays learns no more."""

    def spoil(self) -> None:
        self.model.model.norm.weight.requires_grad_(False)

    def undo(self) -> None:
        self.model.model.norm.weight.requires_grad_(True)
        super().undo()


class NotFinite(BrokenEdit):
    """The cut model runs into infinity."""

    def spoil(self) -> None:
        self.put(self.model.model.norm._parameters, "weight", nn.Parameter(torch.full((16,), torch.inf)))


class NoUndo(BrokenEdit):
    """The undo forgets the config."""

    def undo(self) -> None:
        super().undo()
        self.model.config.num_hidden_layers -= 1


class WrongSum(BrokenEdit):
    """One number more is said to go than goes."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.num_removed_parameters += 1


BREAKS = [
    (StaleConfig, {"rebuild", "reload"}),
    (OtherKind, {"rebuild", "reload", "replay"}),
    (OtherLayers, {"skip", "replay"}),
    (StaleNumbers, {"generate"}),
    (OtherBits, {"replay", "undo"}),
    (Frozen, {"train"}),
    (NotFinite, {"forward"}),
    (NoUndo, {"undo"}),
    (WrongSum, {"parameters"}),
]


def make_llama(auto_class: str = "AutoModelForCausalLM") -> Specimen:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=5, vocab_size=64, max_position_embeddings=40, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    ids = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(1))
    return Specimen("llama", model.eval(), {"input_ids": ids}, auto_class)


def find_failed(verdict: Verdict) -> set[str]:
    return {failure["check"] for failure in verdict.failures}


def test_an_unbroken_cut_is_right() -> None:
    verdict = check_specimen(make_llama())
    assert verdict.status == "right", verdict.failures
    assert not verdict.not_applicable
    assert verdict.passed.keys() == {
        *(
            "forward",
            "parameters",
            "preview",
            "rebuild",
            "reload",
            "auto",
            "skip",
            "generate",
            "train",
            "replay",
            "undo",
        )
    }
    assert Verdict(**json.loads(verdict.to_json())) == verdict


@pytest.mark.parametrize(("broken", "noticed"), BREAKS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_cut_is_wrong(broken: type[BrokenEdit], noticed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ModelEdit", broken)
    monkeypatch.setattr(
        checks, "find_cuts", lambda stacks: [{"model.layers": [0, 1, 2, 4]}, {"model.layers": [1, 2, 3, 4]}]
    )
    verdict = check_specimen(make_llama())
    assert verdict.status == "wrong"
    assert noticed <= find_failed(verdict), verdict.failures


def test_an_auto_class_that_does_not_load_the_uncut_model_says_nothing() -> None:
    verdict = check_specimen(make_llama(auto_class="AutoModelForSequenceClassification"))
    assert verdict.status == "right"
    assert "auto" not in verdict.passed
    assert any(entry.startswith("auto: the uncut model fails it") for entry in verdict.not_applicable)


def test_a_refused_cut_is_counted_and_a_defect_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Any, kept: Mapping[str, list[int]], *, found: Any) -> ModelEdit:
        if 0 not in kept["model.layers"]:
            raise UnsupportedArchitectureError("layer 0 stays")
        return ModelEdit(model, kept, found=found)

    monkeypatch.setattr(bench, "ModelEdit", refuse)
    verdict = check_specimen(make_llama())
    assert (verdict.status, verdict.cuts, len(verdict.refused_cuts)) == ("right", 2, 3)
    assert verdict.refused_cuts[0] == {"cut": "model.layers without 0", "reason": "layer 0 stays"}
    monkeypatch.setattr(bench, "ModelEdit", lambda model, kept, found: 1 / 0)
    verdict = check_specimen(make_llama())
    assert verdict.status == "crash"
    assert "ZeroDivisionError: division by zero (test_zoo_harness.py" in verdict.reason


def test_a_model_that_says_nothing_is_not_called_right() -> None:
    specimen = make_llama()
    with torch.no_grad():
        specimen.model.lm_head.weight.fill_(torch.nan)
    verdict = check_specimen(specimen)
    assert verdict.status == "not built"
    assert "not finite" in verdict.reason


def test_a_cut_that_changes_nothing_is_noted() -> None:
    specimen = make_llama()
    layers = specimen.model.model.layers
    with torch.no_grad():
        layers[0].self_attn.o_proj.weight.zero_()
        layers[0].mlp.down_proj.weight.zero_()
    verdict = check_specimen(specimen)
    assert (verdict.status, verdict.notes) == ("right", ["this forward is the same with model.layers without 0"])
    with torch.no_grad():
        specimen.model.lm_head.weight.zero_()
    verdict = check_specimen(specimen)
    assert (verdict.status, verdict.notes) == ("not built", ["this forward does not use model.layers"])


def test_what_the_uncut_model_fails_is_not_applicable() -> None:
    specimen = make_llama()
    specimen.model.generation_config.cache_implementation = "no such cache"
    verdict = check_specimen(specimen)
    assert verdict.status == "right"
    assert "generate" not in verdict.passed
    assert any(entry.startswith("generate: the uncut model fails it") for entry in verdict.not_applicable)


def test_lists_that_no_stack_covers_are_seen() -> None:
    model = make_llama().model
    model.extra = nn.ModuleList([nn.ModuleList([LlamaForCausalLM(model.config) for _ in range(2)])] * 2)
    assert checks.find_left_whole(model, [])[0] == "model.layers"


# The sweep outlives what a type does to its process.
TROUBLE = """
import json, os, time

class Answer:
    def __init__(self, **values):
        self.values = values

    def to_json(self):
        return json.dumps(self.values)

def check(model_type, seed):
    print("noise on stdout")
    if model_type == "exits":
        os.write(2, b"last words")
        os._exit(3)
    if model_type == "hangs":
        time.sleep(600)
    if model_type == "raises":
        raise ValueError("no such thing")
    if model_type == "eats memory":
        bytearray(20 << 30)
    return Answer(model_type=model_type, status="right", seed=seed, process=os.getpid())
"""


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "trouble.py").write_text(TROUBLE)
    monkeypatch.syspath_prepend(tmp_path)
    return "trouble:check"


def test_the_sweep_goes_on_after_a_crash_a_hang_and_an_exception(trouble: str) -> None:
    types = ["a", "exits", "b", "hangs", "c", "raises", "d", "eats memory", "e"]
    seen: list[str] = []
    results = sweep(types, seed=7, timeout=2.0, check=trouble, report=lambda result: seen.append(result["model_type"]))
    assert seen == types == [result["model_type"] for result in results]
    by_type = {result["model_type"]: result for result in results}
    assert all(by_type[name]["status"] == "right" and by_type[name]["seed"] == 7 for name in "abcde")
    assert by_type["exits"]["reason"] == "the process ended with code 3: last words"
    assert by_type["hangs"]["status"] == "timeout"
    assert by_type["hangs"]["reason"] == "not done after 2 seconds"
    assert by_type["raises"]["reason"] == "ValueError: no such thing"
    assert by_type["eats memory"]["status"] == "crash"
    assert "MemoryError" in by_type["eats memory"]["reason"]
    assert by_type["c"]["process"] == by_type["e"]["process"] != by_type["a"]["process"]
    assert summarize(results).splitlines()[:2] == [
        "9 types: 3 crash, 5 right, 1 timeout",
        summarize([by_type["eats memory"]]).splitlines()[1],
    ]


def test_jobs_share_the_types(trouble: str) -> None:
    results = sweep([f"type {number}" for number in range(20)], jobs=2, check=trouble)
    assert [result["model_type"] for result in results] == [f"type {number}" for number in range(20)]


def test_a_cut_off_last_line_is_swept_again(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"model_type": "a"}\n{"model_type": "b", "sta')
    assert read_results(tmp_path / "results.jsonl") == [{"model_type": "a"}]
    assert read_results(tmp_path / "none.jsonl") == []


def test_a_shard_outside_is_an_error() -> None:
    with pytest.raises(ValueError, match="3/2: expected i/n with 1 <= i <= n"):
        select_types(["a"], "3/2")


# The page.


def make_results() -> list[dict[str, Any]]:
    right = json.loads(check_specimen(make_llama()).to_json())
    pins = {"0": "it owns a_b | c", "1": "it owns a_b | c"}
    stage = {"block": "B", "depth": 3, "pinned": pins, "period": 2, "followers": []}
    staged = [{**stage, "path": f"s.{n}.layers", "count": f"depths[{n}]"} for n in range(3)]
    return [
        {**right, "seconds": 1.0},
        {**right, "model_type": "resnet", "stacks": staged, "left_whole": ["x"], "refusals": ["'x.y': why"]},
        {**right, "model_type": "odd", "status": "refused", "stacks": [], "refusals": ["l" * 999]},
        {"model_type": "gone", "status": "not built", "reason": "needs package timm", "seconds": 2.0},
    ]


def test_the_page_is_the_same_whatever_the_order_and_the_times() -> None:
    results = make_results()
    page = table.render(results, {"transformers": "5", "torch": "2"})
    slower = [{**result, "seconds": 9.0} for result in reversed(results)]
    assert table.render(slower, {"transformers": "5", "torch": "2"}) == page
    assert "4 types, of which 3 were built and 3 have a list of blocks; 66.7% of these are right" in page
    assert "In 1 of the right ones" in page
    assert "| `llama` | `LlamaForCausalLM` | right | `model.layers` num\\_hidden\\_layers |  |" in page
    assert "| Llama | `llama` right |" in page
    assert "`s.*.layers` first, `s.*.layers` 1 of 3: it owns a\\_b \\| c<br>" in page
    assert "left whole: 'x.y': why" in page
    assert max(map(len, page.splitlines())) < 1000
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {3, 4, 6}
