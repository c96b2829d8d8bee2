"""The HTML report: one file that opens without a network, made of JSON and the scripts that show it."""

from harness.reports.page.document import document

__all__ = ["document"]
