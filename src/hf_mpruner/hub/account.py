"""Who pushes, and whether they may: said before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token

from hf_mpruner.errors import PushError

LOG_IN = (
    "Log in with `hf auth login`, or set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens)"
)


@dataclass(frozen=True)
class Account:
    """Whoever a token stands for.

    Args:
        name (`str`): the user.
        organizations (`tuple[str, ...]`): whose repositories the user may see.
        role (`str`, *optional*): of the token: `"read"`, `"write"`, `"fineGrained"`; `None` if the Hub does not say.
    """

    name: str
    organizations: tuple[str, ...] = ()
    role: str | None = None

    def complete(self, repo_id: str) -> str:
        """The name with its namespace, which is the user's own where none was given."""
        return repo_id if "/" in repo_id else f"{self.name}/{repo_id}"

    def check(self, repo_id: str, *, create_pr: bool = False) -> None:
        """Check that this account may write to a repository, as far as can be known without trying.

        Args:
            repo_id (`str`): with its namespace.
            create_pr (`bool`): a pull request needs no right on the repository.

        Raises:
            PushError: for a token that only reads, or a namespace of somebody else.
        """
        if self.role == "read":
            raise PushError(
                f"The token of '{self.name}' may only read, and '{repo_id}' is to be written to. {LOG_IN}. Nothing was sent."
            )
        namespace, _, name = repo_id.partition("/")
        if create_pr or self._owns(repo_id):
            return
        hint = f" ('{repo_id}' is also a folder here: was it meant?)" if Path(repo_id).is_dir() else ""
        others = f" and the organizations {', '.join(self.organizations)}" if self.organizations else ""
        raise PushError(
            f"'{repo_id}' belongs to '{namespace}'{hint}, and the token to '{self.name}'{others}. Push to "
            f"'{self.name}/{name}', log in as somebody who may write there, or propose the change with --create_pr "
            "(create_pr=True). Nothing was sent."
        )

    def check_may_make(self, repo_id: str) -> None:
        """Check that a repository that cannot be seen may be made, which is only so in a namespace of one's own.

        Raises:
            PushError: if a pull request was meant for a repository that is not there.
        """
        if not self._owns(repo_id):
            raise PushError(
                f"There is no '{repo_id}' that '{self.name}' may see, so no pull request can be opened there. Check the "
                f"name, or push to '{self.name}/{repo_id.rpartition('/')[2]}'. Nothing was sent."
            )

    def _owns(self, repo_id: str) -> bool:
        return repo_id.partition("/")[0] in (self.name, *self.organizations)


def find_account(token: str | bool | None = None) -> Account:
    """Ask the Hub whom a token stands for.

    Args:
        token (`str` or `bool`, *optional*): by default the one of `HF_TOKEN` or of `hf auth login`.

    Raises:
        PushError: if there is none.
        HfHubHTTPError: the Hub's own, e.g. 401 for a token that it does not know.
    """
    if token is False or (token in (None, True) and get_token() is None):
        raise PushError(f"Nobody is logged in, and to push takes a token. {LOG_IN}. Nothing was sent.")
    answer = HfApi().whoami(token=token)
    names = tuple(str(group["name"]) for group in answer.get("orgs") or () if group.get("name"))
    role = ((answer.get("auth") or {}).get("accessToken") or {}).get("role")
    return Account(str(answer["name"]), names, role)
