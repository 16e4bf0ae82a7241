"""The file: a ZIP archive of `header.json` and of one NumPy file for each array.

`header.json` holds

- `format`: "numpyro_onestep run", and `version`, 1 (what `checkpoint/journal.py` writes is a
  "numpyro_onestep checkpoint", with other contents than the following);
- `packages`: the versions that wrote it;
- `target`: what the model is known by, without its data (`storage/target.py`);
- `run`: settings and results (`storage/tree.py`), in which arrays stand by their numbers;
- `checksum`: SHA-256 of the arrays' bytes, types and shapes and of all else in the header.

The arrays are `arrays/0.npy` and so on, in NumPy's format 1.0, without pickled objects.
"""

import glob
import hashlib
import json
import os
import platform
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT, _VERSION = "numpyro_onestep", 1
# What wrote a file of each kind.
_WRITERS = {"run": "OneStep.save", "checkpoint": "OneStep(checkpoint=...)"}
# What Python's own readers raise for bytes that are no such file.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    UnicodeDecodeError,
)


def write(
    path: str | os.PathLike, header: dict[str, Any], arrays: list[np.ndarray], kind: str = "run"
) -> None:
    """Write a file as a whole or not at all: it gets its name once it is complete."""
    header = {"format": f"{_FORMAT} {kind}", "version": _VERSION, **header}
    header["checksum"] = _checksum(header, arrays)
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_temporary(path)}{os.getpid()}-")
    try:
        with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("header.json", json.dumps(header, allow_nan=False))
            for index, array in enumerate(arrays):
                with archive.open(f"arrays/{index}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(
                        member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False
                    )
            archive.close()
            stream.flush()
            os.fsync(stream.fileno())  # else it could be empty after a failure of the machine
        # A temporary file can be read by its owner alone; this one is to be like any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_abandoned(path: str | os.PathLike) -> None:
    """Remove what processes that were killed have left of this file, half written."""
    path = Path(path)
    begin = _temporary(path)
    for left in path.parent.glob(f"{glob.escape(begin)}*"):
        number = left.name[len(begin) :].partition("-")[0]
        if number.isdigit() and not _is_other_process(int(number)):
            left.unlink(missing_ok=True)


def _temporary(path: Path) -> str:
    """How the name of a file that is not complete begins; a process's number follows."""
    return f".{path.name}.{platform.node()}-"


def _is_other_process(number: int) -> bool:
    """Whether another process of this number runs on this machine, or may run."""
    if os.name != "posix":
        return True  # there is no way to ask that is always harmless
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return number != os.getpid()


def read(path: str | os.PathLike, kind: str = "run") -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header and the arrays of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of this format, of a later version of it, cut off or altered.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read("header.json"))
            if not isinstance(header, dict) or header.get("format") != f"{_FORMAT} {kind}":
                raise ValueError(f"it is no file of {_WRITERS[kind]}")
            if header["version"] != _VERSION:
                raise ValueError(
                    f"its format is version {header['version']}, and this package reads {_VERSION}"
                )
            count = sum(name.startswith("arrays/") for name in archive.namelist())
            arrays = []
            for index in range(count):
                with archive.open(f"arrays/{index}.npy") as member:
                    arrays.append(np.lib.format.read_array(member, allow_pickle=False))
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(
            f"{os.fspath(path)} cannot be read: it is no file of {_WRITERS[kind]}, or it is cut "
            f"off or altered ({error})."
        ) from error
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read: {error}.") from error
    written = header.pop("checksum", None)
    if written != _checksum(header, arrays):
        raise ValueError(f"{os.fspath(path)} cannot be read: it was altered after it was written.")
    return header, arrays


def _checksum(header: dict[str, Any], arrays: list[np.ndarray]) -> str:
    found = hashlib.sha256(json.dumps(header, sort_keys=True, allow_nan=False).encode())
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
