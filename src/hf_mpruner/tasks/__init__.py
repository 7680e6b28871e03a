"""Tasks that are pruned and judged from the command line: columns, inputs, collator, Trainer, metrics of each."""

from __future__ import annotations

from .base import Purpose, Settings, Task
from .choice import ALIASES, TASKS, find_reader, find_task

__all__ = ["ALIASES", "TASKS", "Purpose", "Settings", "Task", "find_reader", "find_task"]
