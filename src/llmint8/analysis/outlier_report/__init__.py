"""Reports on the outliers of models, for a browser and as a picture."""

from llmint8.analysis.outlier_report.model import ModelOutliers, number, parameters, percent
from llmint8.analysis.outlier_report.page import html_report
from llmint8.analysis.outlier_report.picture import draw_outliers

__all__ = [
    "ModelOutliers",
    "draw_outliers",
    "html_report",
    "number",
    "parameters",
    "percent",
]
