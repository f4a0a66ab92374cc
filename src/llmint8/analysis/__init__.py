"""A model measured: perplexity, divergence from another model, and the outliers of its hidden states."""

from llmint8.analysis.evaluation import Score, evaluate, split_windows
from llmint8.analysis.inputs import InputGroup, LayerOutliers
from llmint8.analysis.outliers import Dimension, OutlierReport, analyze
from llmint8.analysis.recorder import InputStatistics, OutlierRecorder

__all__ = [
    "Dimension",
    "InputGroup",
    "InputStatistics",
    "LayerOutliers",
    "OutlierRecorder",
    "OutlierReport",
    "Score",
    "analyze",
    "evaluate",
    "split_windows",
]
