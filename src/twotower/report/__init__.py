"""A trained model's report: one HTML page that needs nothing beside itself."""

from twotower.report.page import write_report
from twotower.report.record import ReportData

__all__ = ["ReportData", "write_report"]
