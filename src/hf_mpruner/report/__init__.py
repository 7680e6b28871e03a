"""The figures of a finished run, in every form that people look at: terminal, Markdown, JSON, one page, plots."""

from .plots import write_plots
from .report import REPORT_NAME, PruningReport, format_bytes

__all__ = ["REPORT_NAME", "PruningReport", "format_bytes", "write_plots"]
