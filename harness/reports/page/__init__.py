"""The HTML report: one file that opens from a disk, without a network; JSON, and scripts that show it."""

from harness.reports.page.document import document

__all__ = ["document"]
