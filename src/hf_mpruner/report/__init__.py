"""The figures of a finished run, in every form that people look at: terminal, Markdown, JSON, one page, plots."""

from .costs import cache_in_words, run_cost_in_words, saved_apart, throughput
from .page import PAGE_NAME
from .plots import write_plots
from .promised import promise_in_words, promised_bound
from .proposals import proposals_in_words
from .report import REPORT_NAME, PruningReport
from .scores import chose_on_data, chosen_by, chosen_over, scored_rounds, total_cost
from .words import cost_in_words, format_bytes, format_rate

__all__ = [
    "PAGE_NAME",
    "REPORT_NAME",
    "PruningReport",
    "cache_in_words",
    "chose_on_data",
    "chosen_by",
    "chosen_over",
    "cost_in_words",
    "format_bytes",
    "format_rate",
    "promise_in_words",
    "promised_bound",
    "proposals_in_words",
    "run_cost_in_words",
    "saved_apart",
    "scored_rounds",
    "throughput",
    "total_cost",
    "write_plots",
]
