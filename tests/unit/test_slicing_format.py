"""The safetensors format, read and written by hand, against the library's own files; and every file that is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from hf_mpruner.errors import CheckpointError
from hf_mpruner.slicing.format import MAX_HEADER_BYTES, dtypes, make_header, num_bytes, parse_header, read_header
from hf_mpruner.slicing.recipe import StoredTensor

NAMES = [
    "a",
    "b.10",
    "b.9",
    "B",
    "é",
    "ぬ",
    "\U0001f600",
    'quo"te',
    "back\\slash",
    "tab\t",
    "nul\x01",
    "del\x7f",
    "x/y",
    "",
]


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    """Tensors of every dtype of the format, of random shapes: numbers, empty ones, several axes."""
    generator = random.Random(seed)
    tensors = {}
    for number in range(generator.randint(1, 24)):
        dtype = generator.choice(list(dtypes().values()))
        shape = [generator.choice([0, 1, 2, 3, 5]) for _ in range(generator.randint(0, 3))]
        raw = torch.randint(0, 2, [*shape, getattr(torch, dtype.torch_name).itemsize], dtype=torch.uint8)
        if shape or dtype.name != "F4":
            values = raw.view(getattr(torch, dtype.torch_name)).reshape(shape)
            tensors[generator.choice(NAMES) + generator.choice(["", str(number)])] = values
    return tensors


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {}])
def test_a_header_is_byte_for_byte_the_librarys(tmp_path: Path, metadata: dict[str, str]) -> None:
    torch.manual_seed(0)
    seen = set()
    for seed in range(60):
        tensors = random_tensors(seed)
        file = tmp_path / f"{seed}.safetensors"
        save_file(tensors, file, metadata=metadata or None)
        content, header = file.read_bytes(), read_header(file)
        assert header.metadata == metadata
        assert set(header.placed) == set(tensors)
        stored = [placed.tensor for placed in header.placed.values()]
        random.Random(seed).shuffle(stored)
        ours, made = make_header(stored, metadata)
        assert content.startswith(ours)
        assert list(made.placed.items()) == list(header.placed.items())
        assert made.end == header.end == len(content)
        for name, placed in header.placed.items():
            value = tensors[name].contiguous().reshape(-1).view(torch.uint8)
            assert content[placed.start : placed.start + placed.length] == bytes(value.tolist())
            seen.add(placed.tensor.dtype)
    assert seen == set(dtypes())


def test_every_dtype_of_the_format_that_torch_has_is_known() -> None:
    from safetensors.torch import _TYPES

    ours = {name: getattr(torch, dtype.torch_name) for name, dtype in dtypes().items()}
    assert {**ours, **_TYPES} == ours
    assert {dtypes()[name].bits for name in ("F4", "BOOL", "BF16", "F32", "C64") if name in dtypes()} <= {
        4,
        8,
        16,
        32,
        64,
    }
    assert num_bytes(StoredTensor("x", "BF16", (3, 5))) == 30
    assert num_bytes(StoredTensor("x", "I64", ())) == 8


def test_a_dtype_that_is_not_known_and_half_a_byte_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'x' has dtype 'F6_E2M3'; safetensors and torch .* both have .*BF16"):
        num_bytes(StoredTensor("x", "F6_E2M3", (4,)))
    if "F4" in dtypes():
        with pytest.raises(CheckpointError, match="fills no whole bytes"):
            num_bytes(StoredTensor("x", "F4", (3,)))


def write(file: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return file


def entry(start: int, end: int, shape: object = (2,), dtype: object = "I8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BROKEN = {
    "no JSON": (b"{,}", b"", None, "its header is no JSON"),
    "no text": (b'{"\xff": 1}', b"", None, "its header is no JSON"),
    "a list": ([1], b"", None, "its header is a list"),
    "deep": (b"[" * 100_000, b"", None, "its header is no JSON"),
    "too long": (
        {},
        b"",
        MAX_HEADER_BYTES + 1,
        "its header would have 100000001 bytes, at most 100000000 are allowed",
    ),
    "cut in the header": (
        {"x": entry(0, 2)},
        b"",
        500,
        r"cut short in its header: \d+ bytes, the header alone ends at 508",
    ),
    "cut in the tensors": ({"x": entry(0, 2)}, b"1", None, "it is cut short: "),
    "longer": ({"x": entry(0, 2)}, b"123", None, "has bytes that no tensor owns"),
    "twice": (b'{"x": {}, "x": {}}', b"", None, "'x' stands there twice"),
    "gap": (
        {"x": entry(0, 2), "y": entry(3, 5)},
        b"12345",
        None,
        "leave a gap before 'y': it starts at 3, .* ends at 2",
    ),
    "overlap": ({"x": entry(0, 2), "y": entry(1, 3)}, b"123", None, "lie over each other at 'y': it starts at 1"),
    "same place": ({"x": entry(0, 2), "y": entry(0, 2)}, b"12", None, "lie over each other at 'y'"),
    "shape": ({"x": entry(0, 2, shape=[3])}, b"12", None, r"'x' of I8 and shape \[3\] needs 3 bytes, not 2"),
    "backwards": ({"x": entry(2, 0)}, b"12", None, r"'x' of I8 .* needs 2 bytes, not -2"),
    "negative": ({"x": entry(0, 2, shape=[-1, -2])}, b"12", None, r"'x' has dtype 'I8', shape \[-1, -2\]"),
    "fraction": ({"x": entry(0, 2, shape=[2.0])}, b"12", None, r"'x' has dtype 'I8', shape \[2.0\]"),
    "truth": ({"x": entry(0, 1, shape=[True])}, b"1", None, r"'x' has dtype 'I8', shape \[True\]"),
    "no shape": (
        {"x": {"dtype": "I8", "data_offsets": [0, 2]}},
        b"12",
        None,
        "'x' needs dtype, shape and two data_offsets",
    ),
    "one offset": (
        {"x": {**entry(0, 2), "data_offsets": [0]}},
        b"12",
        None,
        "'x' needs dtype, shape and two data_offsets",
    ),
    "a word": ({"x": "y"}, b"12", None, "'x' needs dtype, shape and two data_offsets, and has y"),
    "dtype": ({"x": entry(0, 2, dtype="F9")}, b"12", None, "'x' has dtype 'F9'"),
    "dtype of no kind": ({"x": entry(0, 2, dtype=None)}, b"12", None, "'x' has dtype None"),
    "metadata": ({"__metadata__": ["pt"]}, b"", None, "its __metadata__ is a list"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    header, data, length, message = BROKEN[kind]
    file = write(tmp_path / "model-00002-of-00003.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert f"'{file}'" in str(caught.value)


@pytest.mark.parametrize("size", range(0, 8))
def test_fewer_bytes_than_the_headers_length(tmp_path: Path, size: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\0" * size)
    with pytest.raises(CheckpointError, match=f"it has {size} bytes, fewer than the 8"):
        read_header(file)


def test_a_file_cut_short_anywhere_is_refused_and_the_whole_one_is_not(tmp_path: Path) -> None:
    content, file = save({"x": torch.arange(3), "y": torch.ones(2)}), tmp_path / "model.safetensors"
    for size in range(len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="no whole safetensors file"):
            read_header(file)
    file.write_bytes(content)
    assert set(read_header(file).placed) == {"x", "y"}


def test_order_of_offsets_not_of_names_counts_and_spaces_may_follow(tmp_path: Path) -> None:
    header = json.dumps({"x": entry(2, 4), "y": entry(0, 2), "e": entry(2, 2, shape=[0])}).encode() + b"   "
    read = read_header(write(tmp_path / "model.safetensors", header, b"yyxx"))
    begin = 8 + len(header)
    assert {name: (placed.start - begin, placed.length) for name, placed in read.placed.items()} == {
        "y": (0, 2), "e": (2, 0), "x": (2, 2)
    }  # fmt: skip


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone.safetensors' cannot be read: .*No such file"):
        read_header(tmp_path / "gone.safetensors")


def test_the_bytes_of_a_header_may_come_from_anywhere(tmp_path: Path) -> None:
    content, asked = save({"x": torch.arange(3)}, {"format": "pt"}), []

    def read(start: int, length: int) -> bytes:
        asked.append(start + length)
        return content[start : start + length]

    header = parse_header("ann/model/x.safetensors", None, read)
    assert header.placed["x"].start + 24 == header.end == len(content)
    assert max(asked) == header.placed["x"].start, "no byte of a tensor"
    with pytest.raises(
        CheckpointError, match=r"'ann/model/x.safetensors' is no whole safetensors file: it is cut short"
    ):
        parse_header("ann/model/x.safetensors", len(content) - 1, read)
