"""Which columns of a data set hold what a model reads, and what is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ModelKind = Literal["text", "image"]

# Names that data sets on the Hub give their texts. A pair goes before the single columns that it contains.
_TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
_TEXTS = ("text", "sentence", "content", "review", "document", "tweet", "title")
_LABELS = ("target", "class", "category")
_IMAGE_FILES = ("image", "image_path", "file_name", "path")
_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "pos_tags", "chunk_tags", "tags", "ner", "labels", "label")
_QUESTIONS, _CONTEXTS, _ANSWERS = ("question", "query"), ("context", "passage", "paragraph"), ("answers", "answer")
_TARGET_PAIRS = (
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("source", "target"),
    ("source_text", "target_text"),
    ("input_text", "target_text"),
    ("inputs", "targets"),
    ("input", "target"),
)


@dataclass(frozen=True)
class Columns:
    """The columns that matter.

    Args:
        kind (`"text"` or `"image"`): what the inputs are.
        inputs (`tuple[str, ...]`): one text column, the two of a sentence pair, a question and its context, the words of
            a sentence, or one image column.
        label (`str`, *optional*): the column with what is right: class, tags, answers or target text.
    """

    kind: ModelKind
    inputs: tuple[str, ...]
    label: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.inputs, *([] if self.label is None else [self.label]))


def find_columns(
    dataset: Any,
    model_kind: ModelKind,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    *,
    need_label: bool = True,
) -> Columns:
    """Find the input and the label column by type and usual names; columns that are named are taken as they are.

    Args:
        dataset (`datasets.Dataset` or any sequence of mappings): only its features or its first example are read.
        model_kind (`"text"` or `"image"`): what the model reads.
        text_column (`str` or two of them, *optional*): the text, or the two texts of a sentence pair.
        label_column (`str`, *optional*): the class.
        image_column (`str`, *optional*): the image.
        need_label (`bool`): whether a data set without a label is an error.

    Raises:
        ValueError: if a named column does not exist, or if none or several could be meant; the text lists the
            columns and says what to type.

    Example:
        >>> find_columns([{"sentence": "good", "label": 1, "idx": 7}], "text")
        Columns(kind='text', inputs=('sentence',), label='label')
    """
    types = column_types(dataset)
    named = [text_column] if isinstance(text_column, str) else list(text_column or ())
    _check_named(types, text_column=named, label_column=label_column, image_column=image_column)
    if len(named) > 2:
        raise ValueError(f"text_column names {len(named)} columns: pass one text, or the two of a sentence pair.")
    label = label_column or _find_label(types, need_label)
    inputs: tuple[str, ...]
    if model_kind == "image":
        inputs = (image_column or _find_image(types, label),)
    else:
        inputs = tuple(named) or _find_texts({c: t for c, t in types.items() if c != label}, types)
    return Columns(model_kind, inputs, label)


def find_token_columns(
    dataset: Any, tokens_column: str | None = None, label_column: str | None = None, *, need_label: bool = True
) -> Columns:
    """Find the words of each sentence, and the tag of each word.

    Lists of strings, with lists of numbers, classes or strings; or texts, which a CSV file has instead: words and tags
    with spaces between them, or a JSON list.

    Args:
        dataset (`datasets.Dataset` or any sequence of mappings): only its features or its first example are read.
        tokens_column (`str`, *optional*): the words.
        label_column (`str`, *optional*): the tags.
        need_label (`bool`): whether data without tags is an error.

    Raises:
        ValueError: if a named column does not exist, or if none or several could be meant.

    Example:
        >>> find_token_columns([{"tokens": ["Ada", "came"], "ner_tags": [1, 0], "id": 3}])
        Columns(kind='text', inputs=('tokens',), label='ner_tags')
    """
    types = column_types(dataset)
    _check_named(types, tokens_column=tokens_column, label_column=label_column)
    others = {c: t for c, t in types.items() if c != label_column}
    lists = [c for c, t in others.items() if t == "words"]
    words = [c for c in lists if c in _WORDS] or [c for c in lists if c not in _TAGS] or lists
    words = words or [c for c, t in others.items() if t == "text" and c in _WORDS]
    tokens = tokens_column or _only("tokens", words, types)
    if label_column is None:
        fitting = ("text",) if types[tokens] == "text" else ("classes", "words")
        tags = [c for c, t in types.items() if t in fitting and c != tokens]
        usual = [c for c in tags if c in _TAGS] or tags
        label_column = _only("label", usual, types) if need_label or len(usual) == 1 else None
    return Columns("text", (tokens,), label_column)


def find_answer_columns(
    dataset: Any,
    question_column: str | None = None,
    context_column: str | None = None,
    answers_column: str | None = None,
    *,
    need_label: bool = True,
) -> Columns:
    """Find the questions, the texts that they are about, and the answers in the form of SQuAD.

    Args:
        dataset (`datasets.Dataset` or any sequence of mappings): only its features or its first example are read.
        question_column (`str`, *optional*): the question.
        context_column (`str`, *optional*): the text that holds the answer.
        answers_column (`str`, *optional*): `{"text": [...], "answer_start": [...]}`, a list of such pairs, or either of
            the two as a JSON text, which a CSV file has instead.
        need_label (`bool`): whether data without answers is an error.

    Raises:
        ValueError: if a named column does not exist, or if none or several could be meant.

    Example:
        >>> answers = {"text": ["Ada"], "answer_start": [0]}
        >>> find_answer_columns([{"id": "1", "context": "Ada came.", "question": "Who came?", "answers": answers}])
        Columns(kind='text', inputs=('question', 'context'), label='answers')
    """
    types = column_types(dataset)
    _check_named(types, question_column=question_column, context_column=context_column, answers_column=answers_column)
    texts = [c for c, t in types.items() if t == "text"]
    question = question_column or _only("question", [c for c in texts if c in _QUESTIONS], types)
    context = context_column or _only("context", [c for c in texts if c in _CONTEXTS], types)
    if answers_column is None:
        hits = [c for c, t in types.items() if t == "answers"] or [c for c in texts if c in _ANSWERS]
        answers_column = _only("answers", hits, types) if need_label or len(hits) == 1 else None
    return Columns("text", (question, context), answers_column)


def find_target_columns(
    dataset: Any, text_column: str | Sequence[str] | None = None, target_column: str | None = None
) -> Columns:
    """Find the texts that go in, and those that are to come out.

    Args:
        dataset (`datasets.Dataset` or any sequence of mappings): only its features or its first example are read.
        text_column (`str`, *optional*): the source; `"translation.en"` is field `en` of column `translation`.
        target_column (`str`, *optional*): the target.

    Raises:
        ValueError: if a named column does not exist, or if none or several could be meant.

    Example:
        >>> find_target_columns([{"id": "1", "dialogue": "A: Tea? B: Please.", "summary": "B has tea."}])
        Columns(kind='text', inputs=('dialogue',), label='summary')
    """
    types = column_types(dataset)
    _check_named(types, text_column=text_column, target_column=target_column)
    if text_column is not None and not isinstance(text_column, str):
        if len(text_column) > 1:
            raise ValueError(
                f"text_column names {len(text_column)} columns ({_listed(text_column)}): pass the source text."
            )
        text_column = text_column[0]
    texts = [c for c, t in types.items() if t == "text"]
    fitting = [
        (source, target)
        for source, target in _TARGET_PAIRS
        if {source, target} <= set(texts) and text_column in (None, source) and target_column in (None, target)
    ]
    if len(fitting) == 1:
        text_column, target_column = fitting[0]
    elif text_column and not target_column:
        target_column = _only("target", [c for c in texts if c != text_column], types)
    text_column = text_column or _only("text", [c for c in texts if c != target_column], types)
    if target_column is None:
        raise ValueError(_question("target", [c for c in texts if c != text_column], types))
    return Columns("text", (text_column,), target_column)


def column_types(dataset: Any) -> dict[str, str]:
    """What stands in each column, from the features or the first example; fields of a struct count as columns.

    Returns:
        `dict[str, str]`: `"text"`, `"image"`, `"class"`, `"number"`, `"words"` (a list of texts), `"classes"` (a list
        of whole numbers or classes), `"answers"` (of SQuAD's form) or `"other"`.

    Example:
        >>> column_types([{"id": 7, "translation": {"de": "Tee", "en": "tea"}}])
        {'id': 'number', 'translation.de': 'text', 'translation.en': 'text'}
    """
    features = getattr(dataset, "features", None)
    if features is None:
        features = next(iter(dataset), None) or {}
    return dict(_named_types(features))


def _named_types(features: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, feature in features.items():
        kind = _type_of(feature)
        fields = feature if isinstance(feature, Mapping) else getattr(feature, "languages", None)
        if kind == "other" and isinstance(feature, Mapping):
            yield from ((f"{name}.{field}", _type_of(inner)) for field, inner in feature.items())
        elif kind == "other" and fields:  # `datasets.Translation`
            yield from ((f"{name}.{field}", "text") for field in fields)
        else:
            yield name, kind


def _type_of(feature: Any) -> str:
    """Of a feature of `datasets`, or of a value."""
    kind = type(feature).__name__
    if kind in ("Image", "ClassLabel"):
        return {"Image": "image", "ClassLabel": "class"}[kind]
    if isinstance(feature, Mapping):
        return "answers" if {"text", "answer_start"} <= set(feature) else "other"
    if kind in ("List", "LargeList", "Sequence"):
        return _list_type(_type_of(feature.feature), feature.feature)
    if isinstance(feature, list | tuple):
        return _list_type(_type_of(feature[0]), feature[0]) if feature else "other"
    if kind == "Value":
        dtype = str(feature.dtype)
        if "string" in dtype:
            return "text"
        return "number" if dtype.startswith(("int", "uint", "float", "bool")) else "other"
    if isinstance(feature, str):
        return "text"
    if isinstance(feature, int | float):
        return "number"
    return "image" if type(feature).__module__.startswith("PIL.") else "other"


def _list_type(inner: str, example: Any) -> str:
    real = isinstance(example, float) or "float" in str(getattr(example, "dtype", ""))
    if inner == "number" and real:
        return "other"
    return {"text": "words", "class": "classes", "number": "classes", "answers": "answers"}.get(inner, "other")


def _check_named(types: Mapping[str, str], **named: str | Sequence[str] | None) -> None:
    for flag, given in named.items():
        for column in [given] if isinstance(given, str) else given or ():
            if column not in types:
                raise ValueError(f"{flag}='{column}' is not a column of the data. Its columns are {_listed(types)}.")


def _find_label(types: dict[str, str], need_label: bool) -> str | None:
    by_name = [column for column in ("label", "labels") if column in types]
    by_type = [column for column, kind in types.items() if kind == "class"]
    usual = [column for column in _LABELS if column in types]
    hits = by_name or by_type or usual
    if len(hits) != 1 and not need_label:
        return None
    return _only("label", hits, types)


def _find_image(types: dict[str, str], label: str | None) -> str:
    """By type; else a text column that is called like the path of a file."""
    images = [column for column, kind in types.items() if kind == "image"]
    files = [column for column, kind in types.items() if kind == "text" and column in _IMAGE_FILES]
    return _only("image", images or [column for column in files if column != label], types)


def _find_texts(candidates: dict[str, str], types: dict[str, str]) -> tuple[str, ...]:
    texts = [column for column, kind in candidates.items() if kind == "text"]
    pairs = [pair for pair in _TEXT_PAIRS if set(pair) <= set(texts)]
    if len(pairs) == 1:
        return pairs[0]
    usual = [column for column in texts if column in _TEXTS]
    return (_only("text", usual if len(usual) == 1 else texts, types),)


def _only(what: str, hits: Sequence[str], types: dict[str, str]) -> str:
    if len(hits) == 1:
        return hits[0]
    raise ValueError(_question(what, hits, types))


def _question(what: str, hits: Sequence[str], types: dict[str, str]) -> str:
    count = f"{len(hits)} columns" if len(hits) > 1 else "One column"
    several = f"{count} could be the {what} ({_listed(hits)})"
    example = next(iter([*hits, *types]), "NAME")
    return (
        f"{several if hits else f'No column looks like the {what}'}. The columns are {_listed(types)}: name one, "
        f"{what}_column='{example}' (--{what}_column {example})."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
