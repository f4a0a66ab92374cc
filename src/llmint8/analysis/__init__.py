"""A model measured: perplexity, divergence from another model, and the outliers of its hidden states."""

from llmint8.analysis.evaluation import Score, evaluate
from llmint8.analysis.inputs import InputGroup, LayerOutliers
from llmint8.analysis.outliers import Dimension, OutlierReport, analyze
from llmint8.analysis.recorder import InputStatistics, OutlierRecorder
from llmint8.analysis.windows import Window, plan_windows, split_windows

__all__ = [
    "Dimension",
    "InputGroup",
    "InputStatistics",
    "LayerOutliers",
    "OutlierRecorder",
    "OutlierReport",
    "Score",
    "Window",
    "analyze",
    "evaluate",
    "plan_windows",
    "split_windows",
]
