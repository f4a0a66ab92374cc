"""How good a model is, measured: perplexity, and divergence from another model."""

from llmint8.analysis.evaluation import Score, evaluate, split_windows

__all__ = ["Score", "evaluate", "split_windows"]
