"""Python for a card that runs as it stands: load the model, and one call of it for its task."""

from __future__ import annotations

from .facts import ModelFacts

# What reads an input, by the name that the code below calls it.
_READERS = {
    "AutoTokenizer": "tokenizer",
    "AutoImageProcessor": "processor",
    "AutoFeatureExtractor": "processor",
    "AutoProcessor": "processor",
}
_TEXT = '"A short text for the model."'


def usage_snippet(model: ModelFacts, source: str) -> str | None:
    """Code that loads the model and runs it once.

    Args:
        model (`ModelFacts`): says which classes and which task.
        source (`str`): repository or folder, as `from_pretrained` takes it.

    Returns:
        `str`, *optional*: `None` if the class is in the author's script only.
    """
    if model.loader is None:
        return None
    trust = ", trust_remote_code=True" if model.own_code else ""
    reader = _READERS.get(model.processor or "")
    call = _CALLS.get(model.task or "", _no_call)(model, reader)
    names = [model.loader] if model.module == "transformers" else []
    names += [model.processor] if reader and model.processor and _uses(reader, call) else []
    modules = ["import torch"] * _uses("torch", call)
    other = [] if model.module == "transformers" else [f"from {model.module} import {model.loader}"]
    picture = ["from PIL import Image"] * _uses("Image", call)
    library = [f"from transformers import {', '.join(sorted(names))}"] if names else []
    loads = [f'{reader} = {model.processor}.from_pretrained("{source}")'] if reader and _uses(reader, call) else []
    loads.append(f'model = {model.loader}.from_pretrained("{source}"{trust})')
    return "\n".join([*modules, *picture, *other, *library, "", *loads, *([""] if call else []), *call])


def _uses(name: str, lines: list[str]) -> bool:
    return any(f"{name}." in line or f"{name}(" in line for line in lines)


def _text_inputs(reader: str | None, text: str = _TEXT) -> list[str]:
    if reader == "tokenizer":
        return [f'inputs = tokenizer({text}, return_tensors="pt")']
    if reader:
        return [f'inputs = processor(text={text}, return_tensors="pt")']
    return ['inputs = {"input_ids": torch.ones(1, 8, dtype=torch.long)}  # no tokenizer was saved: your token ids']


def _image_inputs(model: ModelFacts, reader: str | None) -> list[str]:
    channels, height, width = model.image_shape
    if reader is None:
        return [f'inputs = {{"pixel_values": torch.zeros(1, {channels}, {height}, {width})}}  # your pictures']
    mode = "L" if channels == 1 else "RGB"
    return [
        f'image = Image.new("{mode}", ({width}, {height}))  # your picture',
        'inputs = processor(images=image, return_tensors="pt")',
    ]


def _forward(name: str = "logits") -> list[str]:
    return ["with torch.no_grad():", f"    {name} = model(**inputs){'' if name == 'outputs' else '.logits'}"]


def _classify(model: ModelFacts, reader: str | None) -> list[str]:
    inputs = _image_inputs(model, reader) if model.task == "image-classification" else _text_inputs(reader)
    if model.config.get("problem_type") == "multi_label_classification":
        answer = "print([model.config.id2label[i] for i in (logits[0] > 0).nonzero().flatten().tolist()])"
    elif model.config.get("problem_type") == "regression" or len(model.config.get("id2label") or [0, 1]) == 1:
        answer = "print(logits[0].tolist())"
    else:
        answer = "print(model.config.id2label[logits.argmax(-1).item()])"
    return [*inputs, *_forward(), answer]


def _classify_tokens(model: ModelFacts, reader: str | None) -> list[str]:
    labels = "labels = [model.config.id2label[i] for i in logits[0].argmax(-1).tolist()]"
    shown = (
        "print(list(zip(tokenizer.convert_ids_to_tokens(inputs['input_ids'][0].tolist()), labels, strict=True)))"
        if reader == "tokenizer"
        else "print(labels)"
    )
    return [*_text_inputs(reader), *_forward(), labels, shown]


def _answer(model: ModelFacts, reader: str | None) -> list[str]:
    question = '"Who wrote it?", "It was written by a friend of mine."'
    span = "start, end = outputs.start_logits.argmax().item(), outputs.end_logits.argmax().item()"
    shown = (
        "print(tokenizer.decode(inputs['input_ids'][0, start : end + 1]))"
        if reader == "tokenizer"
        else "print(start, end)"
    )
    inputs = _text_inputs(reader, question) if reader in (None, "tokenizer") else _text_inputs(reader)
    return [*inputs, *_forward("outputs"), span, shown]


def _generate(model: ModelFacts, reader: str | None) -> list[str]:
    shown = f"print({reader}.decode(ids[0], skip_special_tokens=True))" if reader else "print(ids[0].tolist())"
    return [*_text_inputs(reader), "ids = model.generate(**inputs, max_new_tokens=20)", shown]


def _fill(model: ModelFacts, reader: str | None) -> list[str]:
    if reader != "tokenizer":
        return [*_text_inputs(reader), *_forward(), "print(logits[0].argmax(-1).tolist())"]
    return [
        *_text_inputs(reader, 'f"The weather is {tokenizer.mask_token} today."'),
        *_forward(),
        "masked = inputs['input_ids'][0] == tokenizer.mask_token_id",
        "print(tokenizer.decode(logits[0, masked].argmax(-1)))",
    ]


def _no_call(model: ModelFacts, reader: str | None) -> list[str]:
    return []


_CALLS = {
    "text-classification": _classify,
    "image-classification": _classify,
    "token-classification": _classify_tokens,
    "question-answering": _answer,
    "text-generation": _generate,
    "text2text-generation": _generate,
    "fill-mask": _fill,
}


def replay_snippet(
    model: ModelFacts,
    source: str,
    base_model: str | None,
    revision: str | None,
    plan: str = "PruningPlan",
    apply: str = "apply_plan_",
) -> str:
    """Code that makes the same cut on a fresh copy of the model that was pruned.

    Args:
        model (`ModelFacts`): of the pruned model.
        source (`str`): repository or folder with the plan.
        base_model (`str`, *optional*): the model that was pruned.
        revision (`str`, *optional*): of that model.
        plan (`str`): the plan's class.
        apply (`str`): what applies it.
    """
    lines = [f"from hf_mpruner import {plan}, {apply}"]
    if base_model and model.loader:
        trust = ", trust_remote_code=True" if model.own_code else ""
        at = f', revision="{revision}"' if revision else ""
        lines += [f"from {model.module} import {model.loader}", ""]
        lines.append(f'model = {model.loader}.from_pretrained("{base_model}"{at}{trust})')
        name = "model"
    else:
        lines += ["", "# original: the model that was pruned, as it was before"]
        name = "original"
    return "\n".join([*lines, f'{apply}({name}, {plan}.from_pretrained("{source}"))'])
