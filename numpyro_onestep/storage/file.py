"""The file: a ZIP archive of `header.json` and of one NumPy file for each array.

`header.json` holds

- `format`: "numpyro_onestep run", and `version`, 1;
- `packages`: the versions that wrote it;
- `target`: what the model is known by, without its data (`storage/target.py`);
- `run`: settings and results (`storage/tree.py`), in which arrays stand by their numbers;
- `checksum`: SHA-256 of the arrays' bytes, types and shapes and of all else in the header.

The arrays are `arrays/0.npy` and so on, in NumPy's format 1.0, without pickled objects.
"""

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT, _VERSION = "numpyro_onestep run", 1
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


def write(path: str | os.PathLike, header: dict[str, Any], arrays: list[np.ndarray]) -> None:
    """Write a file as a whole or not at all: it gets its name once it is complete."""
    header = {"format": _FORMAT, "version": _VERSION, **header}
    header["checksum"] = _checksum(header, arrays)
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("header.json", json.dumps(header, allow_nan=False))
            for index, array in enumerate(arrays):
                with archive.open(f"arrays/{index}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(
                        member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False
                    )
        # A temporary file can be read by its owner alone; this one is to be like any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header and the arrays of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of this format, of a later version of it, cut off or altered.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read("header.json"))
            if not isinstance(header, dict) or header.get("format") != _FORMAT:
                raise ValueError("it is no file of OneStep.save")
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
            f"{os.fspath(path)} cannot be read: it is no file of OneStep.save, or it is cut off or "
            f"altered ({error})."
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
