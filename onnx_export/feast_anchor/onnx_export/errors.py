"""Every error feast-anchor raises on purpose, as one tree.

    AnchorError
    ├── BundleError      a bundle folder is missing, changed, truncated, newer or not allowed
    ├── PretrainedError  a folder of pretrained weights is broken or of a kind we cannot run
    ├── SpecError        a declaration is wrong: modality, scenario, view or engine setting
    ├── SourceError      an event table cannot be read as it was declared
    ├── StateError       a stored user state cannot be read, continued or asked that
    ├── SpaceError       vectors of two embedding spaces would meet under one name
    ├── CatalogError     the catalogue cannot be opened or is of another version
    └── RunError         a run failed while it worked; running it again resumes it
        └── BooksError   rows in do not equal rows out plus rows rejected

Messages say what was given, what was expected and what to do next. All but `RunError` mean
"change something first": running again gives the same error.
"""

from __future__ import annotations


class AnchorError(Exception):
    """Base of every error raised on purpose."""


class BundleError(AnchorError):
    """A bundle folder cannot be trusted or used."""


class PretrainedError(AnchorError):
    """A folder of pretrained weights is missing, incomplete or of a kind we cannot run."""


class SpecError(AnchorError, ValueError):
    """A declaration (modality, scenario, view, engine setting) is wrong."""


class SourceError(AnchorError):
    """An event table cannot be read as it was declared."""


class StateError(AnchorError):
    """A stored user state cannot be used: read the user's history anew."""


class SpaceError(AnchorError):
    """Vectors of two embedding spaces would meet under one name."""


class CatalogError(AnchorError):
    """The catalogue cannot be opened, or its schema is not this version's."""


class RunError(AnchorError):
    """A run failed while it worked. Finished shards are kept; run it again to resume."""


class BooksError(RunError):
    """Rows in do not equal rows out plus rows rejected."""
