"""Writing a bundle: whole or not at all.

Files are collected in a folder beside the target, each flushed to the disk; then the manifest is written, the
whole is read back with every check of :func:`~edgescribe.sdk.bundle.read_bundle`, and renamed into place. An
output that exists is replaced only with ``force``, and kept until the new one stands in its place.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from ..errors import BundleError, OutputError
from .bundle import Bundle, read_bundle, seal_of
from .bundle_files import CHUNK_BYTES, MANIFEST_NAME, SEAL_NAME, check_relative_path
from .manifest import FileEntry, Manifest
from .sha256 import sha256

Source = Path | bytes


def pending(path: str) -> FileEntry:
    """An entry for a manifest whose size and hash are filled in when the bundle is written."""
    return FileEntry(path=path, sha256="0" * 64, bytes=0)


def write_bundle(
    manifest: Manifest, files: Mapping[str, Source], out: str | os.PathLike[str], force: bool = False
) -> Bundle:
    """Write a bundle.

    Args:
        manifest: its content; sizes and hashes in it are not looked at (see :func:`pending`).
        files: by path inside the bundle, what to put there: a file to copy, or the bytes themselves. Files that the
            manifest does not name (a report) are put there too.
        out: the bundle's folder.
        force: replace ``out`` where it exists and is a bundle.

    Raises:
        OutputError: ``out`` exists, cannot be written, or the disk is full. Nothing is left behind.
        BundleError: what would be written contradicts itself, or a file of the manifest is not in ``files``.
    """
    with BundleWriter(out, force) as writer:
        for path, source in files.items():
            writer.add(path, source)
        return writer.commit(manifest)


def replace_in_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Write a bundle anew in its place with fields of its manifest replaced (``measurements=``, ``quality=``).

    All its files are kept, those that the manifest does not name too.

    Raises:
        OutputError: it cannot be written; the bundle is as it was.
        BundleError: the changed manifest contradicts itself, or a file was changed meanwhile.
    """
    files = {
        path.relative_to(bundle.folder).as_posix(): path
        for path in sorted(bundle.folder.rglob("*"))
        if path.is_file() and path.relative_to(bundle.folder).as_posix() not in (MANIFEST_NAME, SEAL_NAME)
    }
    read_bundle(bundle.folder)  # else a damaged file would get a hash that fits
    return write_bundle(msgspec.structs.replace(bundle.manifest, **changes), files, bundle.folder, force=True)


class BundleWriter:
    """Collects a bundle's files and puts it into place; a context manager.

    Leaving the block without :meth:`commit`, or by an exception, removes everything that was written.

    Args:
        out: the bundle's folder; folders above it are made.
        force: replace it where it exists and is a bundle (or an empty folder).

    Raises:
        OutputError: on entering, ``out`` exists or the folder above it cannot be written.
    """

    def __init__(self, out: str | os.PathLike[str], force: bool = False) -> None:
        self._given = Path(out)
        self._force = force
        self._entries: dict[str, FileEntry] = {}
        self._made: list[Path] = []

    def __enter__(self) -> BundleWriter:
        with self._output_errors():
            self._out = self._given.resolve()
        check_output(self._given, self._force)
        self._folder = self._sibling("partial")
        try:
            with self._output_errors():
                self._make_parents()
                self._folder.mkdir()
        except BaseException:
            self._remove_parents()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._remove_parents()

    def add(self, path: str, source: Source) -> FileEntry:
        """Put a file into the bundle at ``path``: a copy of a file, or these bytes. Returns its entry.

        Raises:
            OutputError: it cannot be written.
            BundleError: the path is not allowed in a bundle, or there already; or the source cannot be read.
        """
        check_relative_path(path)
        if path.casefold() in (known.casefold() for known in self._entries):
            raise BundleError(f"the file {path!r} is put into the bundle twice; name each file once")
        with self._output_errors():
            target = self._folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            digest, size = sha256(), 0
            with target.open("xb") as file:
                for chunk in _chunks(source):
                    digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
                _flush(file)
        self._entries[path] = FileEntry(path=path, sha256=digest.hexdigest(), bytes=size)
        return self._entries[path]

    def commit(self, manifest: Manifest) -> Bundle:
        """Fill in sizes and hashes, write the manifest, check the whole, and put it into place.

        Raises:
            OutputError: it cannot be written, or someone else wrote ``out`` meanwhile.
            BundleError: a file of the manifest was not added, or the bundle contradicts itself.
        """
        raw = msgspec.json.encode(self._filled(manifest))
        with self._output_errors():
            for name, content in ((MANIFEST_NAME, raw), (SEAL_NAME, seal_of(raw))):
                with (self._folder / name).open("xb") as file:
                    file.write(content)
                    _flush(file)
        bundle = read_bundle(self._folder)
        with self._output_errors():
            for folder in [path for path in self._folder.rglob("*") if path.is_dir()] + [self._folder]:
                _flush_folder(folder)
            self._put_into_place()
        return replace(bundle, folder=self._out)

    def _filled(self, manifest: Manifest) -> Manifest:
        change = msgspec.structs.replace
        artifacts = tuple(
            change(artifact, files=tuple(self._entry(file) for file in artifact.files))
            for artifact in manifest.artifacts
        )
        tokenizer = change(manifest.tokenizer, file=self._entry(manifest.tokenizer.file))
        return change(manifest, artifacts=artifacts, tokenizer=tokenizer)

    def _entry(self, file: FileEntry) -> FileEntry:
        if file.path not in self._entries:
            raise BundleError(
                f"the manifest names the file {file.path!r}, which was not added to the bundle; "
                f"added: {', '.join(self._entries) or 'none'}"
            )
        return self._entries[file.path]

    def _put_into_place(self) -> None:
        old: Path | None = None
        if os.path.lexists(self._out):
            check_output(self._given, self._force)
            old = self._sibling("old")
            self._out.rename(old)
        try:
            self._folder.rename(self._out)
        except BaseException:
            if old is not None:
                old.rename(self._out)
            raise
        _flush_folder(self._out.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _sibling(self, kind: str) -> Path:
        return self._out.parent / f".{self._out.name[:100]}.{os.urandom(4).hex()}.{kind}"

    def _make_parents(self) -> None:
        missing = []
        folder = self._out.parent
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self._made.append(folder)

    def _remove_parents(self) -> None:
        for folder in reversed(self._made):
            try:
                folder.rmdir()
            except OSError:  # someone else put something there meanwhile
                return

    @contextmanager
    def _output_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(_explain(self._given, error)) from error
        except (RuntimeError, ValueError) as error:  # a circle of links, a null byte
            fault = f"no bundle can be written there ({error}); give another path"
            raise OutputError(f"{str(self._given)!r}: {fault}") from error


def check_output(out: str | os.PathLike[str], force: bool) -> None:
    """Check, before any work is done, that a bundle may be written to ``out``.

    Raises:
        OutputError: it exists and ``force`` is not set, or it is something other than a bundle or an empty folder.
    """
    path = Path(out)
    try:
        if not os.path.lexists(path):
            return
        replaceable = path.is_dir() and ((path / MANIFEST_NAME).is_file() or not any(path.iterdir()))
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(path)!r} cannot be looked at ({error}); give another path") from error
    if not replaceable:
        raise OutputError(f"{path} exists and is not a bundle, so it is not replaced; give another path")
    if not force:
        raise OutputError(f"{path} exists already; give another path, or --force (force=True) to replace it")


def _chunks(source: Source) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise BundleError(f"{source} cannot be put into the bundle ({error.strerror}); check the file") from error
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make names in a folder last through a power cut, where the system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(out: Path, error: OSError) -> str:
    reason = {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EFBIG: "a file is larger than this process may write: raise the limit (ulimit -f)",
        errno.EDQUOT: "the disk quota is used up: free some space",
        errno.EROFS: "the file system is read-only: give another path",
        errno.EACCES: "the folder may not be written: give another path, or change its permissions",
        errno.EPERM: "the folder may not be written: give another path, or change its permissions",
        errno.ENOTDIR: "a part of the path is a file: give another path",
    }.get(error.errno or 0, f"{error.strerror or error}: give another path")
    return f"{out}: the bundle was not written, {reason}"
