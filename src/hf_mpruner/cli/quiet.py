"""The libraries below talk a lot; a command line shows its own words, and bars only on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Only errors from transformers, and no bars unless stderr is a terminal; everything is put back."""
    from transformers.utils import logging as chatter

    if os.environ.get("HF_MPRUNER_DEBUG"):
        yield
        return
    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    if not sys.stderr.isatty():
        chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
