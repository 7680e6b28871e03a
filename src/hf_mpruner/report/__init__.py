"""The figures of a finished run, in every form that people look at: terminal, Markdown, JSON, one page, plots."""

from .page import PAGE_NAME
from .plots import write_plots
from .report import REPORT_NAME, PruningReport
from .words import format_bytes

__all__ = ["PAGE_NAME", "REPORT_NAME", "PruningReport", "format_bytes", "write_plots"]
