"""Every failure a user can mend.

DitedgeError                 exit code 2, one line, no traceback
├── BundleError              a bundle is damaged, tampered with, or from another version
├── ProgramError             a sampler table or its settings make no sense
├── RequestError             labels, seeds, guidance or files that do not fit the bundle
├── EngineError              an engine library is missing, or refuses the graph
└── CheckpointError          a checkpoint that cannot be read as a DiT
Cancelled                    sampling stopped because the caller asked for it

Anything else that is raised is a bug and keeps its traceback. Messages name the file, the value and the remedy.
"""


class DitedgeError(Exception):
    """Something the user can mend; the message is one sentence or two."""


class BundleError(DitedgeError):
    """A bundle is damaged, tampered with, or from another version."""


class ProgramError(DitedgeError):
    """A sampler table or its settings make no sense."""


class RequestError(DitedgeError):
    """Labels, seeds, guidance or files that do not fit the bundle."""


class EngineError(DitedgeError):
    """An engine library is missing, or refuses the graph."""


class CheckpointError(DitedgeError):
    """A checkpoint that cannot be read as a DiT."""


class Cancelled(Exception):
    """Sampling stopped because the caller asked for it."""
