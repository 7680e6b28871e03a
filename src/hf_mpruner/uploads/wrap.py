"""The Trainer's `push_to_hub` and its pushes in the background, with what they hand to the Hub taken over."""

from __future__ import annotations

import functools
import inspect
import logging
import shlex
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi
from transformers.utils.hub import hf_api

from hf_mpruner.card import merge_card
from hf_mpruner.errors import PushError
from hf_mpruner.hub import Pushed, Secrets, commit_files, find_leaks
from hf_mpruner.storage import write_bytes, write_text

from .checkpoints import add_checkpoint
from .limits import check_adapters
from .pages import (
    CARD_NAME,
    OWN_PLOTS,
    Pages,
    check_depths,
    has_section,
    is_by_hand,
    make_card,
    metadata_alone,
    plan_of_weights,
)
from .parcel import TOP_WEIGHTS, Parcel, is_top_weights, names_to_push, written_weights
from .redirect import Upload, uploads_to

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_mpruner.config import PruningConfig
    from hf_mpruner.record import PruningRecord

    Run = tuple[PruningRecord, PruningConfig]

logger = logging.getLogger(__name__)


def wrap_pushes(trainer: Trainer, kind: type, find_run: Callable[[], Run | None]) -> None:
    """Let a Trainer's pushes carry what a pruning run says about its weights, and no secret.

    Args:
        trainer (`Trainer`): its `push_to_hub` and `_push_from_checkpoint` are replaced. Both do what they did, up to the
            upload: that is one commit of ours, in the Trainer's own queue.
        kind (`type`): of the callback; without one of them on the Trainer its pushes are its own.
        find_run (callable): gives record and config of the run; `None` before it has measured anything.
    """
    pushes = _Pushes(trainer, find_run)
    push_to_hub, from_checkpoint = trainer.push_to_hub, trainer._push_from_checkpoint

    def is_on() -> bool:
        return any(isinstance(one, kind) for one in trainer.callback_handler.callbacks)

    @functools.wraps(push_to_hub)
    def push(*args: Any, **kwargs: Any) -> Any:
        return pushes.push(push_to_hub, *args, **kwargs) if is_on() else push_to_hub(*args, **kwargs)

    @functools.wraps(from_checkpoint)
    def push_from_checkpoint(checkpoint_folder: str) -> None:
        if not is_on():
            return from_checkpoint(checkpoint_folder)
        with uploads_to(functools.partial(pushes.in_background, Path(checkpoint_folder))):
            return from_checkpoint(checkpoint_folder)

    trainer.push_to_hub = push  # type: ignore[method-assign]
    trainer._push_from_checkpoint = push_from_checkpoint  # type: ignore[method-assign]


class _Pushes:
    """The pushes of one Trainer."""

    def __init__(self, trainer: Trainer, find_run: Callable[[], Run | None]) -> None:
        self.trainer, self.find_run, self.pages = trainer, find_run, Pages()
        self.own_card: str | None = None  # README.md of the repository, if every word of it is from here
        self.told: set[str] = set()

    @property
    def output_dir(self) -> Path:
        return Path(self.trainer.args.output_dir or ".")

    def push(self, original: Callable[..., Any], *args: Any, create_pr: bool = False, **kwargs: Any) -> Any:
        """`trainer.push_to_hub(...)`; `create_pr` opens a pull request instead."""
        check_adapters(self.trainer)
        before = _read(self.output_dir / CARD_NAME)  # the Trainer writes its own over it
        before = before if is_by_hand(before) else None
        try:
            private = inspect.signature(original).bind(*args, **kwargs).arguments.get("private")
        except TypeError:  # which `original` raises again
            private = None
        handler = functools.partial(self.at_the_end, before, create_pr, private)
        with uploads_to(handler):
            return original(*args, **kwargs)

    def in_background(self, checkpoint: Path, upload: Upload) -> Future[Any]:
        """A job of the Trainer while it trains; a failure of it is told once and does not end the training."""
        parcel = self._parcel(upload)
        doing = f"The push of step {self.trainer.state.global_step} to '{upload.repo_id}'"
        try:
            if upload.place:
                add_checkpoint(parcel, upload.folder, upload.place)
                job = functools.partial(self._send, parcel, upload, None, replaces=(f"{upload.place}/*",))
            else:
                card = self._add_model(parcel, upload, checkpoint, _read(upload.folder / CARD_NAME))
                job = functools.partial(self._send, parcel, upload, card)
        except Exception as error:
            parcel.discard()
            self._tell(doing, error)
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed
        return hf_api().run_as_future(self._told, doing, job)

    def at_the_end(self, before: str | None, create_pr: bool, private: bool | None, upload: Upload) -> Any:
        """The upload of `trainer.push_to_hub(...)`: what is pushed lies in the output folder as well."""
        parcel = self._parcel(upload)
        try:
            card = self._add_model(parcel, upload, None, _read(upload.folder / CARD_NAME), before)
        except OSError as error:
            parcel.discard()
            raise PushError(
                f"The push to '{upload.repo_id}' was not begun: {error}. Make room, or whatever it needs, then call "
                "trainer.push_to_hub() again. Nothing was sent."
            ) from error
        except BaseException:
            parcel.discard()
            raise

        def finish() -> CommitInfo:
            try:
                return self._send(parcel, upload, card, private=private, create_pr=create_pr)
            except PushError as error:
                raise PushError(
                    f"{error} Everything is in '{upload.folder}': call trainer.push_to_hub() again, or type\n"
                    f"    {_command(upload, create_pr)}"
                ) from error

        if not upload.background:
            return finish()
        return hf_api().run_as_future(self._told, "", finish)

    def _has_plain_card(self) -> bool:
        """Whether transformers writes README.md; other libraries say in theirs how their models are used."""
        from transformers import Trainer

        return getattr(self.trainer.create_model_card, "__func__", None) is Trainer.create_model_card

    def _parcel(self, upload: Upload) -> Parcel:
        trainer = self.trainer
        secrets = Secrets.of_machine([self.output_dir], [upload.token, trainer.args.hub_token])
        return Parcel(self.output_dir, trainer.state.global_step, secrets)

    def _add_model(
        self, parcel: Parcel, upload: Upload, checkpoint: Path | None, local: str | None, before: str | None = None
    ) -> str | None:
        """Fill a parcel with what lies in the output folder, and with our files; returns the card."""
        weights = written_weights(upload.folder if checkpoint is None else checkpoint)
        for name in names_to_push(upload.folder, upload.ignored):
            if name == CARD_NAME or (is_top_weights(name) and name not in weights):
                continue
            file, lasting = upload.folder / name, None if checkpoint is None else checkpoint / name
            if lasting is not None and not (lasting.is_file() and lasting.stat().st_size == file.stat().st_size):
                lasting = None
            parcel.add(name, file, lasting=lasting, as_is=checkpoint is None and not upload.background)
        run = self.find_run()
        if run is None:
            return None if find_leaks((local or "").encode(), parcel.secrets) else local
        record, config = run
        if checkpoint is None and self._has_plain_card():
            local = metadata_alone(local)
        check_depths(self.trainer, plan_of_weights(record))
        pages = self.pages.files(record, config, self.output_dir)
        for name, content in pages.items():
            parcel.put(name, content)
        card = make_card(
            self.trainer, record, config, repo_id=upload.repo_id, pictures=[name for name in pages if name.endswith(".png")],
            present=[local, before], secrets=parcel.secrets,
        )  # fmt: skip
        if checkpoint is None:
            self._leave(upload.folder, pages, card)
        return card

    def _leave(self, folder: Path, pages: dict[str, bytes], card: str | None) -> None:
        try:
            for name, content in pages.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(folder / name, content)
            if card is not None:
                write_text(folder / CARD_NAME, card)
        except OSError as error:
            logger.warning("Not all that is pushed could be written to '%s': %s", folder, error)

    def _send(
        self,
        parcel: Parcel,
        upload: Upload,
        card: str | None,
        *,
        replaces: tuple[str, ...] = (*TOP_WEIGHTS, *OWN_PLOTS),
        private: bool | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        chosen: list[str] = []

        def choose(theirs: str | None) -> str:
            text = card or ""
            if theirs is not None and theirs != self.own_card:
                text = merge_card(theirs, text) if has_section(text) else theirs
            chosen.append(text)
            return text

        try:
            pushed = commit_files(
                upload.repo_id, parcel.files, message=upload.message, revision=upload.revision, token=upload.token,
                private=self.trainer.args.hub_private_repo if private is None else private, create_pr=create_pr,
                card=None if card is None else choose, replaces=replaces,
            )  # fmt: skip
        finally:
            parcel.discard()
        if pushed.card in ("written", "unchanged") and not create_pr:
            self.own_card = card if chosen[-1] == card else None
        if pushed.card in ("unknown", "refused"):
            logger.warning(
                "README.md in '%s' is as it was, everything else was pushed: %s. trainer.push_to_hub() tries again.",
                upload.repo_id,
                pushed.card_reason,
            )
        return _commit_info(pushed, upload.message)

    def _told(self, doing: str, job: Callable[[], Any]) -> Any:
        try:
            return job()
        except Exception as error:
            self._tell(doing, error)
            raise

    def _tell(self, doing: str, error: Exception) -> None:
        """A future of the Trainer is asked by nobody for its exception."""
        if str(error) in self.told:
            return
        self.told.add(str(error))
        if doing:
            again = "The next save pushes again, and trainer.push_to_hub() after the training brings everything."
            logger.error("%s failed: %s %s", doing, error, again)
        else:
            logger.error("%s", error)


def _command(upload: Upload, create_pr: bool) -> str:
    words = ["hf-mpruner", "push", str(upload.folder), upload.repo_id]
    words += ["--revision", upload.revision] if upload.revision else []
    return shlex.join([*words, *(["--create_pr"] if create_pr else [])])


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _commit_info(pushed: Pushed, message: str) -> CommitInfo:
    url = f"{HfApi().endpoint}/{pushed.repo_id}/commit/{pushed.head}"
    return CommitInfo(
        commit_url=url, commit_message=message, commit_description="", oid=pushed.head, pr_url=pushed.pull_request_url
    )
