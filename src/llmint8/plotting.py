"""What every picture needs: matplotlib, which is loaded when one is drawn."""

from __future__ import annotations

from llmint8.errors import LLMInt8Error


def require_matplotlib() -> None:
    """Raise LLMInt8Error, with the remedy, if no picture can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise LLMInt8Error(
            f"matplotlib cannot be imported ({error}); run: pip install 'llmint8[plot]'"
        ) from error
