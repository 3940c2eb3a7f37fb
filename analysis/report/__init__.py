"""The report: one HTML file that needs no network, of one run or several side by side."""

from skerch.analysis.report.page import Report, Section, Shown, Table, render

__all__ = ["Report", "Section", "Shown", "Table", "render"]
