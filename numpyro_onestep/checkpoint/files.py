"""Where the checkpoints of a sampler are: one file for each of its runs."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from numpyro_onestep.result import Trained
from numpyro_onestep.storage import file


class Files:
    """The checkpoints of the runs of one sampler, in the order of the runs.

    The first run has the file that the user names, the second one the same name with `.2` after it,
    and so on.  So a script that runs a sampler several times can be started again: each of its runs
    finds its own file.  A run that did not end is gone on with by the next call of `run`.

    Args:
        path: the file of the first run.

    Raises:
        OSError: its folder is not there or cannot be written.
    """

    def __init__(self, path: str | os.PathLike):
        self._first = Path(os.path.abspath(os.fspath(path)))
        self._number = 1
        self._ended: dict[str, Any] | None = None  # identity of the last run that ended
        self._is_under_way = False
        self._earlier: Trained | None = None
        self.require_writable()

    def earlier(self, last: Trained | None) -> Trained | None:
        """The run that a warm start begins from: `last`; for a run that did not end, as before."""
        if not self._is_under_way:
            self._earlier, self._is_under_way = last, True
        return self._earlier

    def of(self, identity: dict[str, Any]) -> Path:
        """The file of a run; that of the last one, where it is the same run once more."""
        if self._ended not in (None, identity):
            self._number, self._ended = self._number + 1, None
        return self._path

    def end(self, identity: dict[str, Any]) -> None:
        """The run of this identity has ended: the next one has another file."""
        self._ended, self._is_under_way, self._earlier = identity, False, None

    def require_writable(self) -> None:
        """Raise an OSError unless a checkpoint can be written; and clear away what is half written.

        Raises:
            OSError: the folder is not there or cannot be written, or the path is that of a folder.
        """
        path = self._path
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise type(error)(
                error.errno,
                f"checkpoint={os.fspath(path)!r} cannot be written ({error.strerror}): give the "
                "path of a file in a folder that is there and can be written",
            ) from error
        file.remove_abandoned(path)

    @property
    def _path(self) -> Path:
        if self._number == 1:
            return self._first
        return self._first.with_name(f"{self._first.name}.{self._number}")
