"""Conversion of a checkpoint on disk, tensor by tensor, to int8 in one of three formats."""

from llmint8.streaming.convert import convert_checkpoint
from llmint8.streaming.formats import FORMATS

__all__ = ["FORMATS", "convert_checkpoint"]
