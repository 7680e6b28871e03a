"""The Hub, seen from here: names and rights, one whole commit that is safe to try again, what must not leave."""

from .ids import check_repo_id
from .leaks import NEVER_SENT, Secrets, find_leaks, is_local, scrub_json

__all__ = ["NEVER_SENT", "Secrets", "check_repo_id", "find_leaks", "is_local", "scrub_json"]
