"""The exceptions of hf_mpruner, one family. A bad argument is a plain `ValueError` or `TypeError`."""


class MPrunerError(Exception):
    """Root of every error that hf_mpruner defines."""


class UnsupportedArchitectureError(MPrunerError, ValueError):
    """The model has no block stack that can be cut, or a cut of it could not be proved right."""


class PlanMismatchError(MPrunerError, ValueError):
    """A pruning plan does not fit the model it is applied to."""


class UnsupportedBackendError(MPrunerError, NotImplementedError):
    """The training backend, optimizer or wrapper cannot lose layers in a running loop."""


class CalibrationError(MPrunerError, ValueError):
    """The calibration data or the activations it produces cannot be measured."""


class CheckpointError(MPrunerError, ValueError):
    """A checkpoint's files are missing, broken or at odds with each other, or cannot be read without a model."""


class PushError(MPrunerError):
    """Something did not get to the Hub; the text says why, what is there now, and what to type next."""
