"""Two processes evaluate: what each takes from it, for test_outcomes.py to compare with one process."""

from __future__ import annotations

from torch import distributed

from distributed_kit import OUTPUT, taken_outcomes, write

write({str(rows): taken_outcomes(OUTPUT / str(rows), rows) for rows in (24, 21)})
distributed.destroy_process_group()
