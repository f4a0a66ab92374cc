"""The variants of every optimizer, by name: state in 8 bits, and state in files."""

from llmint8.optim.adam import LAMB, Adam, AdamW, AdEMAMix
from llmint8.optim.momentum import LARS, SGD, Lion
from llmint8.optim.squares import Adagrad, RMSprop


class Adam8bit(Adam):
    """`Adam` with its state in 8 bits."""

    _optim_bits = 8


class AdamW8bit(AdamW):
    """`AdamW` with its state in 8 bits."""

    _optim_bits = 8


class AdEMAMix8bit(AdEMAMix):
    """`AdEMAMix` with its state in 8 bits."""

    _optim_bits = 8


class LAMB8bit(LAMB):
    """`LAMB` with its state in 8 bits."""

    _optim_bits = 8


class SGD8bit(SGD):
    """`SGD` with its state in 8 bits."""

    _optim_bits = 8


class LARS8bit(LARS):
    """`LARS` with its state in 8 bits."""

    _optim_bits = 8


class Lion8bit(Lion):
    """`Lion` with its state in 8 bits."""

    _optim_bits = 8


class RMSprop8bit(RMSprop):
    """`RMSprop` with its state in 8 bits."""

    _optim_bits = 8


class Adagrad8bit(Adagrad):
    """`Adagrad` with its state in 8 bits."""

    _optim_bits = 8


class PagedAdam(Adam):
    """`Adam` with its state in files (`llmint8.optim.pages`)."""

    _is_paged = True


class PagedAdam8bit(Adam8bit):
    """`Adam8bit` with its state in files (`llmint8.optim.pages`)."""

    _is_paged = True


class PagedAdamW(AdamW):
    """`AdamW` with its state in files (`llmint8.optim.pages`)."""

    _is_paged = True


class PagedAdamW8bit(AdamW8bit):
    """`AdamW8bit` with its state in files (`llmint8.optim.pages`)."""

    _is_paged = True


class PagedAdEMAMix(AdEMAMix):
    """`AdEMAMix` with its state in files (`llmint8.optim.pages`)."""

    _is_paged = True


class PagedAdEMAMix8bit(AdEMAMix8bit):
    """`AdEMAMix8bit` with its state in files (`llmint8.optim.pages`)."""

    _is_paged = True


class PagedLion(Lion):
    """`Lion` with its state in files (`llmint8.optim.pages`)."""

    _is_paged = True


class PagedLion8bit(Lion8bit):
    """`Lion8bit` with its state in files (`llmint8.optim.pages`)."""

    _is_paged = True
