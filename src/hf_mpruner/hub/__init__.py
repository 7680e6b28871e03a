"""The Hub, seen from here: names and rights, one whole commit that is safe to try again, what must not leave."""

from .account import Account, find_account
from .commit import Pushed, check_target, commit_files
from .explain import explain
from .ids import check_repo_id
from .leaks import NEVER_SENT, Secrets, find_leaks, is_local, scrub_json
from .remote import WEIGHTS, Remote, find_remote, matches
from .retry import brief, patiently, status_of

__all__ = [
    "NEVER_SENT",
    "WEIGHTS",
    "Account",
    "Pushed",
    "Remote",
    "Secrets",
    "brief",
    "check_repo_id",
    "check_target",
    "commit_files",
    "explain",
    "find_account",
    "find_leaks",
    "find_remote",
    "is_local",
    "matches",
    "patiently",
    "scrub_json",
    "status_of",
]
