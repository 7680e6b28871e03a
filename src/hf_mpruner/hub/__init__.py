"""The Hub, seen from here: names and rights, one whole commit that is safe to try again, what must not leave."""

from .ids import check_repo_id

__all__ = ["check_repo_id"]
