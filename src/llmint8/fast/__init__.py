"""Whole models in few calls: what `optimize_for_inference` puts in place of a decoder's forward.

Needs transformers; nothing here is imported by `import llmint8`.
"""

from llmint8.fast.optimize import FastPath, fast_path, optimize_for_inference, restore

__all__ = ["FastPath", "fast_path", "optimize_for_inference", "restore"]
