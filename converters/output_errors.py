"""What writers of the workbench raise when a disk is full or read-only, told as one kind of error."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "a file is larger than this process may write: raise the limit (ulimit -f)",
    errno.EROFS: "the file system is read-only: give another path",
    errno.EACCES: "the folder may not be written: give another path, or change its permissions",
    errno.EPERM: "the folder may not be written: give another path, or change its permissions",
    errno.ENOTDIR: "a part of the path is a file: give another path",
    errno.EEXIST: "a part of the path is a file: give another path",
}
# What torch.save and safetensors say, in words alone, when the system refuses to write.
_NOT_WRITTEN = (
    "PytorchStreamWriter", "unexpected pos", "enforce fail", "I/O error", "iostream error", "Io(", "os error",
)  # fmt: skip


@contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Raise :class:`~edgescribe.errors.OutputError` in place of whatever failing to write ``target`` raises."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, f"{error.strerror or error}: give another path")
        raise OutputError(f"{target} was not written, {advice}") from error
    except Exception as error:
        if not any(word in str(error) for word in _NOT_WRITTEN):
            raise
        raise OutputError(f"{target} was not written, most likely since the disk is full: free some space") from error
