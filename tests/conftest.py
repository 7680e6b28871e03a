"""Fixtures that every test may use, and the environment all tests run in: offline, quiet, one thread a process."""

from __future__ import annotations

import atexit
import gc
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn
    from transformers import BertForSequenceClassification, ResNetForImageClassification, ViTForImageClassification

    from hub.kit import Client, Hub

# Read when the libraries are imported, so set before. `HF_HUB_OFFLINE=0 pytest -m network` keeps its own value.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if "HF_HOME" not in os.environ:  # the caches of whoever runs the tests are left alone
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_mpruner-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# Models of a test are so small that threads wait for each other longer than they compute; `-n 2` uses the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the accelerators unless `-m` asks for tests that need one: what is compared bit for bit runs on the CPU."""
    if "gpu" not in re.sub(r"not (multi_)?gpu", "", config.option.markexpr):
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


class _DeprecationHandler(logging.Handler):
    """Collects what transformers says about deprecation through its logger instead of `warnings`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in record.getMessage().lower():
            self.messages.append(record.getMessage())


@pytest.fixture(autouse=True)
def _no_logged_deprecation() -> Iterator[None]:
    """Fail a test in which transformers logs that something is deprecated."""
    handler = _DeprecationHandler()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not handler.messages, f"transformers logged a deprecation: {handler.messages}"


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> None:
    """Each Trainer has the garbage collected, which looks through all that was ever imported unless it is frozen.

    What is garbage when a file begins goes first; what a test makes is not frozen and can be waited for.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn but not turned into PNGs, which takes longer than a tiny run; others look at those."""
    monkeypatch.setattr("hf_mpruner.report.plots.to_png", lambda figure: b"png")


@pytest.fixture
def make_bert() -> Callable[..., BertForSequenceClassification]:
    """Build a tiny `BertForSequenceClassification` in eval mode; keywords go to its config, `seed` to the weights."""

    def make(num_hidden_layers: int = 4, seed: int = 0, **config: Any) -> BertForSequenceClassification:
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 99}
        settings = {**sizes, "max_position_embeddings": 32, "num_labels": 3, **config}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return BertForSequenceClassification(BertConfig(num_hidden_layers=num_hidden_layers, **settings)).eval()

    return make


@pytest.fixture
def make_vit() -> Callable[..., ViTForImageClassification]:
    """Build a tiny `ViTForImageClassification` for 8x8 grey images, in eval mode; keywords as in `make_bert`."""

    def make(num_hidden_layers: int = 4, seed: int = 0, **config: Any) -> ViTForImageClassification:
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        settings = {**sizes, "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10, **config}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ViTForImageClassification(ViTConfig(num_hidden_layers=num_hidden_layers, **settings)).eval()

    return make


@pytest.fixture
def weight_digest() -> Callable[[nn.Module], str]:
    """SHA-256 over name, type, shape and bytes of every parameter and buffer: equal digests, equal models."""

    def digest(model: nn.Module) -> str:
        import torch

        total = hashlib.sha256()
        for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
            for name, tensor in sorted(tensors):
                total.update(f"{kind} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                total.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        return total.hexdigest()

    return digest


# One Hub and one client of each kind, as starting a client costs its imports; what a file has put there goes with it.
@pytest.fixture(scope="session")
def running_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub on the loopback."""
    from hub.kit import Hub

    with Hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def shared_hub(running_hub: Hub) -> Iterator[Hub]:
    """The Hub, empty but for the user "ann"; at a file's end it says what it had no answer for."""
    yield running_hub
    try:
        running_hub.check()
    finally:
        running_hub.clear()  # a file's fault is not the next one's


@pytest.fixture
def hub(shared_hub: Hub) -> Iterator[Hub]:
    """The file's Hub; what a test orders from it, and how it is set, ends with the test."""
    yield shared_hub
    shared_hub.reset()


@pytest.fixture(scope="session")
def client(running_hub: Hub) -> Iterator[Client]:
    """A process with the Hub's libraries that is logged in as ann, without Xet."""
    with running_hub.client() as running:
        yield running


@pytest.fixture(scope="session")
def xet_client(running_hub: Hub) -> Iterator[Client]:
    """As `client`, with Xet on, as users have it; the Hub's `uploads` must be "regular" for it."""
    with running_hub.client(xet=True) as running:
        yield running


@pytest.fixture
def make_resnet() -> Callable[[], ResNetForImageClassification]:
    """Build a tiny `ResNetForImageClassification`: two stages of two blocks."""

    def make() -> ResNetForImageClassification:
        import torch
        from transformers import ResNetConfig, ResNetForImageClassification

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
            return ResNetForImageClassification(config).eval()

    return make
