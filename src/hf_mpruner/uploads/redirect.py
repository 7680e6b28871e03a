"""What a Trainer hands to the Hub's `upload_folder` comes to a function of ours, for as long as it pushes.

The Trainer, and those built on it, decide what is pushed when: they copy files of a checkpoint, write a card, skip a push
while another runs. All of it ends in `hf_api().upload_folder(...)`, so that call is taken over and nothing else.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.utils.hub import hf_api

_NAME = "upload_folder"
_SIGNATURE = inspect.signature(HfApi.upload_folder)
_LOCK = threading.Lock()
_HANDLERS: dict[int, Callable[[Upload], Any]] = {}  # by thread: another Trainer may push in another one
_ORIGINALS: list[Any] = []


@dataclass(frozen=True)
class Upload:
    """A folder that a Trainer wants to push.

    Args:
        repo_id (`str`): where to.
        folder (`Path`): whose files go.
        message (`str`): title of the commit.
        place (`str`): folder in the repository; empty for its top.
        token (`str`, *optional*): the Trainer's.
        revision (`str`, *optional*): the branch.
        background (`bool`): whether the Trainer wants a future.
        ignored (`tuple[str, ...]`): patterns of files that do not go.
    """

    repo_id: str
    folder: Path
    message: str
    place: str = ""
    token: str | None = None
    revision: str | None = None
    background: bool = False
    ignored: tuple[str, ...] = ()


@contextmanager
def uploads_to(handler: Callable[[Upload], Any]) -> Iterator[None]:
    """Give the uploads of this thread that go through transformers' `hf_api()` to a function.

    Args:
        handler (callable): gets an `Upload`; what it returns is what the Trainer gets.
    """
    me, api = threading.get_ident(), hf_api()
    with _LOCK:
        if not _HANDLERS:
            _ORIGINALS.append(vars(api).get(_NAME))
            setattr(api, _NAME, _taken_over(getattr(api, _NAME)))
        outer = _HANDLERS.get(me)
        _HANDLERS[me] = handler
    try:
        yield
    finally:
        with _LOCK:
            if outer is None:
                del _HANDLERS[me]
            else:
                _HANDLERS[me] = outer
            if not _HANDLERS:
                delattr(api, _NAME)
                if (own := _ORIGINALS.pop()) is not None:
                    setattr(api, _NAME, own)


def _taken_over(original: Callable[..., Any]) -> Callable[..., Any]:
    def upload_folder(*args: Any, **kwargs: Any) -> Any:
        handler = _HANDLERS.get(threading.get_ident())
        if handler is None:
            return original(*args, **kwargs)
        given = _SIGNATURE.bind(None, *args, **kwargs).arguments
        ignored = given.get("ignore_patterns") or ()
        return handler(
            Upload(
                repo_id=given["repo_id"],
                folder=Path(given["folder_path"]),
                message=given.get("commit_message") or "Upload model",
                place=given.get("path_in_repo") or "",
                token=given.get("token"),
                revision=given.get("revision"),
                background=bool(given.get("run_as_future")),
                ignored=(ignored,) if isinstance(ignored, str) else tuple(ignored),
            )
        )

    return upload_folder
