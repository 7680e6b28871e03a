"""`PruningPlan`: data in the original numbering, built from clusters or by hand, composed, saved."""

from __future__ import annotations

import json

import pytest
import torch

from hf_mpruner.architectures import BlockStack, ConfigField
from hf_mpruner.clusters import LayerCluster, find_clusters
from hf_mpruner.config import resolve_protected
from hf_mpruner.errors import PlanMismatchError
from hf_mpruner.plan import PLAN_NAME, PruningPlan, StackPlan

ENCODER = BlockStack("encoder.block", "T5Block", 6, ConfigField("num_layers"), pinned={0: "it owns the bias"})
DECODER = BlockStack("decoder.block", "T5Block", 4, ConfigField("num_decoder_layers"))
STACKS = [ENCODER, DECODER]


def runs(*groups):
    return [LayerCluster(tuple(group), 0.99) for group in groups]


@pytest.mark.parametrize(
    ("granularity", "kept"), [(1, (0,)), (2, (0, 2, 4)), (3, (0, 2, 3, 5))], ids=["k=1", "k=2", "k=3"]
)
def test_granularity_removes_every_kth_member(granularity, kept):
    plan = PruningPlan.from_clusters({"encoder.block": runs(range(6))}, STACKS, granularity)
    assert plan.kept["encoder.block"] == kept
    assert plan.kept["decoder.block"] == (0, 1, 2, 3)  # stacks without clusters stay whole


def test_protected_and_pinned_layers_stay():
    shifted = BlockStack("encoder.block", "T5Block", 6, ConfigField("num_layers"), pinned={2: "it opens a stage"})
    plan = PruningPlan.from_clusters({"encoder.block": runs(range(6))}, [shifted], protect=[-1])
    assert plan.kept["encoder.block"] == (0, 2, 5)


def test_from_a_matrix_to_a_plan():
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[1, 2] = similarity[2, 1] = 0.99
    plan = PruningPlan.from_clusters({"decoder.block": find_clusters(similarity)}, STACKS)
    assert plan.stacks["decoder.block"].removed == (2,)
    assert plan.num_removed == 1


@pytest.mark.parametrize("granularity", [0, 4, "1"])
def test_a_wrong_granularity_is_named(granularity):
    with pytest.raises(ValueError, match=rf"granularity={granularity!r} is not allowed: pass 1, 2 or 3"):
        PruningPlan.from_clusters({}, STACKS, granularity)


def test_clusters_of_a_deeper_model_are_refused():
    with pytest.raises(PlanMismatchError, match=r"name layer 5, but the model has 4 layers there"):
        PruningPlan.from_clusters({"decoder.block": runs(range(6))}, STACKS)


@pytest.mark.parametrize(
    ("build", "layers"),
    [(PruningPlan.from_kept, [0]), (PruningPlan.from_clusters, runs([0]))],
    ids=["kept", "clusters"],
)
def test_an_unknown_stack_is_refused_with_the_known_ones(build, layers):
    with pytest.raises(
        PlanMismatchError, match=r"'bert\.layer' is no block stack.*'encoder\.block', 'decoder\.block'"
    ):
        build({"bert.layer": layers}, STACKS)


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ([], r"'decoder\.block': A plan that keeps none of 4 layers"),
        ([0, 4], r"Kept layers \[4\] do not exist in a stack of 4 layers.*0\.\.3"),
        ([2, 1], r"Kept layers \[2, 1\] are not ascending.*pass \[1, 2\]"),
        ([1, 1], r"Kept layers \[1, 1\] are not ascending.*pass \[1\]"),
    ],
)
def test_impossible_layers_are_named(kept, text):
    with pytest.raises(ValueError, match=text):
        PruningPlan.from_kept({"decoder.block": kept}, STACKS)


def test_a_pinned_layer_cannot_be_dropped_by_hand():
    with pytest.raises(
        PlanMismatchError, match=r"Layer 0 of 'encoder\.block' cannot be dropped: it owns the bias.*add 0"
    ):
        PruningPlan.from_kept({"encoder.block": [1, 2]}, STACKS)


def test_two_plans_compose_in_the_numbering_of_the_first():
    first = PruningPlan.from_kept({"encoder.block": [0, 2, 3, 5]}, STACKS)
    second = PruningPlan({"encoder.block": StackPlan(4, (0, 2))})
    assert first.then(second).kept == {"encoder.block": (0, 3), "decoder.block": (0, 1, 2, 3)}
    with pytest.raises(PlanMismatchError, match=r"expects 6 layers in 'encoder\.block', the first leaves 4 layers"):
        first.then(first)


def test_saved_and_loaded_it_is_the_same_with_its_evidence(tmp_path):
    plan = PruningPlan.from_kept(
        {"decoder.block": [0, 3]}, STACKS, model_type="t5", source_model="t5-small", evidence={"threshold": 0.98}
    )
    file = plan.save_pretrained(tmp_path)
    for place in (tmp_path, file):
        loaded = PruningPlan.from_pretrained(place)
        assert loaded == plan
        assert loaded.evidence == {"threshold": 0.98}
    assert [f.name for f in tmp_path.iterdir()] == [PLAN_NAME]


def test_a_place_without_a_plan_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No pruning_plan\.json at .*nothing-here"):
        PruningPlan.from_pretrained(tmp_path / "nothing-here")


def test_a_plan_of_a_newer_format_is_refused(tmp_path):
    (tmp_path / PLAN_NAME).write_text(json.dumps({"plan_version": 7, "stacks": {}}))
    with pytest.raises(ValueError, match=r"This plan has format 7, this hf_mpruner reads up to 1"):
        PruningPlan.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no pruning plan: it has no 'stacks', only 'layers'"):
        PruningPlan.from_dict({"layers": 3})


def test_protect_entries_name_their_stack_or_all():
    depths = {"encoder": 3, "decoder": 5}
    assert resolve_protected([0, -1, "decoder:2"], depths) == {"encoder": {0, 2}, "decoder": {0, 2, 4}}
    assert resolve_protected(["4"], depths) == {"encoder": set(), "decoder": {4}}  # only one stack is that deep


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("7", r"protect entry '7' names no layer: 'encoder' has 3 layers, 'decoder' has 5 layers"),
        ("encoder:3", r"protect entry 'encoder:3' names no layer: 'encoder' has 3 layers"),
        ("vision:0", r"protect entry 'vision:0': 'vision' is no block stack"),
    ],
)
def test_a_protect_entry_that_hits_nothing_is_an_error(entry, text):
    with pytest.raises(ValueError, match=text):
        resolve_protected([entry], {"encoder": 3, "decoder": 5})


def test_preview_counts_what_the_cut_leaves(make_bert):
    from hf_mpruner.architectures import find_block_stacks
    from hf_mpruner.surgery import apply_plan_

    model = make_bert()
    plan = PruningPlan.from_kept({"bert.encoder.layer": [0, 3]}, find_block_stacks(model))
    preview = plan.preview(model)
    assert preview.parameters_before == model.num_parameters()
    apply_plan_(model, plan)
    assert preview.parameters_after == model.num_parameters()
    assert preview.bytes_after == 4 * model.num_parameters()
    assert "bert.encoder.layer  4 -> 2 layers, without 1-2" in str(preview)
    assert f"{preview.parameters_before:,} -> {preview.parameters_after:,}" in str(preview)


def test_clusters_are_cut_in_runs_that_fit_the_period():
    stack = BlockStack("blocks", "SwinLayer", 8, ConfigField("depths", index=2), period=2, pinned={0: "opens a stage"})
    clusters = {"blocks": [LayerCluster((0,), 1.0), LayerCluster((1, 2, 3, 4), 0.99), LayerCluster((5, 6, 7), 0.99)]}
    plan = PruningPlan.from_clusters(clusters, [stack])
    assert plan.stacks["blocks"].removed == (2, 3, 6, 7)  # of 2, 3, 4 a pair; from the end any number
