"""One family of errors: each names what was wrong, what was given and what to do about it."""


class LLMInt8Error(Exception):
    """Base of every error that llmint8 raises on purpose."""


class ConfigError(LLMInt8Error, ValueError):
    """A setting is outside its range: a threshold, a skip pattern, a field of a saved configuration."""


class InputError(LLMInt8Error, ValueError):
    """A tensor handed to an operation has the wrong dtype, shape or device."""


class QuantizationError(LLMInt8Error, ValueError):
    """A weight or a model cannot be quantised: non-finite values, too many features, already int8."""


class CheckpointError(LLMInt8Error, ValueError):
    """A checkpoint on disk is missing, torn, or does not hold what its layout promises."""


class BackendError(LLMInt8Error, RuntimeError):
    """A backend or an instruction set that was asked for by name cannot run on this machine."""
