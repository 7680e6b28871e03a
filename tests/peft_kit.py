"""What the tests of models with PEFT adapters share: tiny bases, adapters of every kind, and all that a cut may touch."""

from __future__ import annotations

import copy

import pytest
import torch
from packaging.version import Version
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from trainer_kit import everything

peft = pytest.importorskip("peft")
VERSION = Version(peft.__version__)
if Version("0.21") > VERSION:
    BertConfig().use_return_dict  # noqa: B018  older ones read it, and transformers says once that it is deprecated

IDS = torch.arange(2, 18).reshape(2, 8)
QUERY = "bert.encoder.layer.{}.attention.self.query"


def needs_peft(version):
    """Older ones fail by themselves with the transformers that are supported, without hf_mpruner."""
    return pytest.mark.skipif(Version(version) > VERSION, reason=f"peft {VERSION} cannot do this, {version} can")


def make_base(depth=4):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=depth, num_labels=2,
        problem_type="single_label_classification",
    )  # fmt: skip
    return BertForSequenceClassification(config)


def make_llama(**settings):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1,
        num_hidden_layers=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_t5():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=99, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=4, num_decoder_layers=3,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def lora(**settings):
    # without zeros at the start, so that every adapter shows in the outputs
    return peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, "init_lora_weights": False, **settings})


KINDS = {
    "lora": lora,
    "dora": lambda: lora(use_dora=True),
    "rslora": lambda: lora(use_rslora=True, lora_alpha=3, bias="lora_only"),
    "ia3": lambda: peft.IA3Config(
        task_type="SEQ_CLS", target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"],
        init_ia3_weights=False,
    ),
    "loha": lambda: peft.LoHaConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_weights=False
    ),
    "lokr": lambda: peft.LoKrConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_weights=False
    ),
}  # fmt: skip


def wrap(base, config):
    torch.manual_seed(1)
    return peft.get_peft_model(base, config)


def settings_of(model):
    """A copy of every adapter's config."""
    return {name: copy.deepcopy(vars(config)) for name, config in model.peft_config.items()}


def all_of(trainer):
    return everything(trainer), settings_of(trainer.model)


def logits(model, **inputs):
    model = model.eval()
    with torch.no_grad():
        return model(**(inputs or {"input_ids": IDS})).logits


def reload(folder, kind=None):
    """With peft alone, as somebody who has never heard of hf_mpruner."""
    return (kind or peft.AutoPeftModelForSequenceClassification).from_pretrained(folder)


def reload_by_hand(folder, kind=AutoModelForSequenceClassification):
    return peft.PeftModel.from_pretrained(kind.from_pretrained(folder / "pruned_base"), folder)


def make_tokenizer():
    """Words `w0` to `w95`, split at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(96))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_sentence_transformer(folder):
    """A tiny BERT with mean pooling, by way of a folder."""
    from sentence_transformers import SentenceTransformer

    make_base().bert.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu")
