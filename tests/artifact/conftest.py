"""The fake run that reports are tested on serves the reading of whole runs, too."""

from tests.report.conftest import fake

__all__ = ["fake"]
