"""README.md of a push: the folder's, with our section made for the repository, put into the one that is there."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from hf_mpruner.card import BEGIN, END, ModelFacts, check_card, merge_card, render_card
from hf_mpruner.errors import PushError
from hf_mpruner.hub import Secrets, find_leaks
from hf_mpruner.narrowing import NarrowingReport, render_narrowing_card

from .folder import CARD, ModelFolder

logger = logging.getLogger(__name__)


def make_card(found: ModelFolder, repo_id: str, secrets: Secrets) -> Callable[[str | None], str] | None:
    """What becomes of the README.md that is on the Hub; `None` if there is nothing to write.

    Args:
        found (`ModelFolder`): what is pushed.
        repo_id (`str`): where to, which its code will load from.
        secrets (`Secrets`): what must not be in it.

    Returns:
        callable: from the Hub's README.md (`None`: there is none) to the one to write. Outside of our section the Hub's
        text wins over the folder's.

    Raises:
        PushError: if a token or a local path is in it.
    """
    file = found.folder / CARD
    local = file.read_bytes().decode("utf-8") if CARD in found.files else None
    ours = _render(found, repo_id, local)
    if ours is None:
        return None
    if leaks := find_leaks(ours.encode("utf-8"), secrets):
        raise PushError(
            f"The card of '{found.folder}' holds {leaks[0]}. Take it out, then push again. Nothing was sent."
        )

    said: list[str] = []

    def merge(theirs: str | None) -> str:
        if theirs is None:
            check_card(ours)
            return ours
        words = own_words(ours)
        if words and words not in theirs and not said:  # once, however often it is merged
            said.append(words)
            logger.warning(
                "The text of %s beside our section is not the one that '%s' has, which stays. To replace it: hf upload %s "
                "%s %s", file, repo_id, repo_id, file, CARD,
            )  # fmt: skip
        return merge_card(theirs, ours) if BEGIN in ours else theirs

    return merge


def own_words(card: str) -> str:
    r"""What a person wrote in a card: without metadata, heading, and our section.

    Example:
        >>> own_words(f"---\ntags: [a]\n---\n# Title\n\nMine.\n\n{BEGIN}\nours\n{END}\n")
        'Mine.'
    """
    body = re.sub(r"\A\s*---\s*\n.*?\n---\s*\n", "", card.replace("\r\n", "\n"), flags=re.DOTALL)
    body = re.sub(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", "", body, flags=re.DOTALL)
    return re.sub(r"\A\s*# [^\n]*\n?", "", body).strip()


def _render(found: ModelFolder, repo_id: str, local: str | None) -> str | None:
    """The folder's card, with our section made anew for the repository's name."""
    if found.report is None:
        return local
    pictures = [name for name in found.files if name.endswith(".png")]
    title = repo_id.rpartition("/")[2]
    try:
        facts = ModelFacts.of_folder(found.folder)
        if isinstance(found.report, NarrowingReport):
            fresh = render_narrowing_card(found.report, model=facts, repo_id=repo_id, title=title)
        else:
            fresh = render_card(found.report, model=facts, repo_id=repo_id, title=title, pictures=pictures)
        return merge_card(local, fresh)
    except ValueError as error:  # the weights are not held up by their description
        logger.warning("%s is pushed as it lies in '%s': %s", CARD, found.folder, " ".join(str(error).split()))
        return local
