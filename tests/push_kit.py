"""A small pruned model in a folder, for tests of pushes."""

from __future__ import annotations

import random
from pathlib import Path

LAYER_STACK = "bert.encoder.layer"


def write_folder(folder: Path, *, layers: int = 4, model_type: str = "bert", source: str | None = None) -> Path:
    """Prune a tiny classifier to half its depth and write everything that a run writes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        ViTConfig,
        ViTForImageClassification,
    )

    from hf_mpruner.artifacts import write_artifacts
    from hf_mpruner.config import PruningConfig
    from hf_mpruner.oneshot import prune_

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_labels": 3}
    words = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        if model_type == "bert":
            model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, vocab_size=99, **sizes))
            examples = [{"input_ids": torch.randint(1, 99, (6,), generator=generator)} for _ in range(8)]
            table = Tokenizer(
                models.WordLevel(
                    {word: i for i, word in enumerate(("[UNK]", "[PAD]", *"abcdefgh"))}, unk_token="[UNK]"
                )
            )
            table.pre_tokenizer = pre_tokenizers.Whitespace()
            words = PreTrainedTokenizerFast(tokenizer_object=table, unk_token="[UNK]", pad_token="[PAD]")
        else:
            picture = {"image_size": 8, "patch_size": 2, "num_channels": 1}
            model = ViTForImageClassification(ViTConfig(num_hidden_layers=layers, **picture, **sizes))
            examples = [{"pixel_values": torch.rand(1, 8, 8, generator=generator)} for _ in range(8)]
    random.seed(0)
    config = PruningConfig(threshold=0.0, protect=["2"])
    report = prune_(model.eval(), config, calibration=examples, evaluate=lambda _: {"accuracy": 0.5})
    report.record.source_model = source
    return write_artifacts(folder, model=model, processing_class=words, report=report, config=config)
