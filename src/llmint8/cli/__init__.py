"""The command line. torch and transformers are imported by the commands that need them, not before."""

from llmint8.cli.app import main

__all__ = ["main"]
