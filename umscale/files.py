"""Whole files below one root, a local folder or object storage: a reader sees the old content or the new, never a part.

A local file is written under a temporary dotted name (which dataset readers ignore), flushed and renamed. Object
storage has no rename: an object is uploaded whole and appears when the upload completes.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from umscale.errors import UserError
from umscale.processes import scope, start_time
from umscale.urls import redact

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

QUARANTINE = "quarantine"
"""Folder of a root that damaged files are moved to."""
OBJECT_STORAGE_TICK = 2.0
"""Seconds within which object storage may give two versions of an object the same time."""


LONGEST = 4 << 30
"""Bytes of a file of a store that is read as a whole."""
SHORTEST = 1 << 20
"""Of one that holds a few values."""


class Unusable(UserError):
    """What bears a file's name is a pipe, a device, a link that leads nowhere, or too long to be one of a store's."""


def open_regular(path: Path, longest: int = LONGEST) -> int:
    """Return a descriptor of a regular file, opened for reading; a pipe is not waited for.

    Raises:
        FileNotFoundError: there is none.
        Unusable: it is something else, or longer than ``longest`` bytes.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (
            errno.ELOOP,
            errno.ENXIO,
            errno.ENODEV,
        ):  # a link to itself, a socket, a device without driver
            raise Unusable(f"{path} cannot be read as a file ({os.strerror(error.errno)})") from None
        raise
    found = os.fstat(handle)
    if stat.S_ISDIR(found.st_mode):
        os.close(handle)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode) or found.st_size > longest:
        os.close(handle)
        what = f"{found.st_size} bytes long" if stat.S_ISREG(found.st_mode) else "a pipe or a device"
        raise Unusable(f"{path} is {what}, and no file of this kind")
    return handle


def read_bounded(path: Path, longest: int = LONGEST) -> bytes:
    """Return a regular file's content; raises as ``open_regular`` does."""
    with open(open_regular(path, longest), "rb") as stream:
        return stream.read(longest)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a folder."""

    name: str
    """Without its folder."""
    version: str
    """Differs between two contents of the file."""
    settled: bool
    """False while a later content might still come to bear the same ``version``."""


class Files(Protocol):
    """Files by POSIX names relative to one root.

    Who may write: any process on any machine, any name, without asking another. Two that write one name at once leave
    the whole content of one of them; nothing here locks, so who must not be overtaken holds a lease
    (``umscale.store.leases``) and writes a name of its own. What a reader may see: the whole content that a name had
    at some moment, or that there is no such file; never a part, nor the beginning of one and the end of another. A
    write that has returned is seen by every later read, and survives a power cut where it was ``durable``. ``entries``
    may miss what is written meanwhile, and names what is deleted meanwhile: two files are no transaction, and who
    needs both writes first what the other refers to. A ``settled`` entry's ``version`` changes with its content.
    A writer that is killed leaves at most a dotted temporary file, which no reader sees and ``tidy`` removes.

    Every method raises ``UserError`` for what the user can put right: a full disk, a folder that cannot be written,
    storage that cannot be reached.
    """

    address: str
    """What ``open_files`` opens again; may hold a password."""

    def describe(self, name: str = "") -> str:
        """Return where the root, or a file of it, is, without secrets: for messages and records."""

    def read(self, name: str, longest: int = LONGEST) -> bytes:
        """Return a file's content; raises ``FileNotFoundError``, and ``Unusable`` for what is no file or too long."""

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a file; unless ``durable``, a power cut may undo it."""

    def reading(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local path with the file's content; raises as ``read`` does, but for any length."""

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local path to write; on success its content replaces the file."""

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""

    def occupied(self, but: Collection[str] = ()) -> bool:
        """Return whether there is anything here; dotted names do not count."""

    def entries(self, folder: str) -> list[Entry]:
        """Return the files directly in a folder in order of name, dotted ones left out; none when it is missing."""

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    def delete_folder(self, folder: str) -> None:
        """Remove a folder with all it holds, if it is there."""

    def move(self, name: str, to: str) -> None:
        """Give a file another name; raises ``FileNotFoundError``."""

    def tidy(self) -> None:
        """Remove what processes that were killed while writing have left."""


def open_files(root: "str | os.PathLike[str]") -> Files:
    """Open a folder, or a URL that ``pyarrow.fs`` knows (``s3://bucket/prefix?region=…``, ``gs://``, ``file://``).

    Raises:
        UserError: a URL of an unknown kind or with options that its kind does not have.
    """
    address = os.fspath(root)
    if not is_url(address):
        return LocalFiles(Path(address))
    parts = urlsplit(address)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or parts.query:
            raise UserError(f"{redact(address)}: write a folder as file:///folder, or as it is")
        return LocalFiles(Path(unquote(parts.path)))
    return ObjectFiles(address)


def is_url(address: str) -> bool:
    """Return whether an address is a URL and not a folder."""
    return "://" in address


def _inside(name: str) -> str:
    """Return ``name``, which may come from a stranger's store; raises ``UserError`` if it leads out of the root."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise UserError(f"{name!r} is no name of a file in a store")
    return name


_TEMPORARY = re.compile(r"\..*\.(?P<scope>[0-9a-f]{16})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


def quarantine(files: Files, name: str) -> str:
    """Move a damaged file out of the way and return where it went, for a message."""
    to = f"{QUARANTINE}/{name.replace('/', '-')}.{secrets.token_hex(3)}"
    with contextlib.suppress(FileNotFoundError):  # another process was quicker
        files.move(name, to)
    return files.describe(to)


# ---------------------------------------------------------------------------------------------------------
# A folder


class LocalFiles:
    """Files in a local or shared folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)

    def describe(self, name: str = "") -> str:
        return str(self.root / name)

    def _at(self, name: str) -> Path:
        return self.root / _inside(name)

    def read(self, name: str, longest: int = LONGEST) -> bytes:
        path = self._at(name)
        try:
            return read_bounded(path, longest)
        except IsADirectoryError:
            raise UserError(f"{path} is a folder where a file should be; move it away") from None
        except PermissionError:
            raise UserError(f"{path} may not be read by this user") from None

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        with atomic_path(self._at(name), durable=durable) as temporary:
            temporary.write_bytes(data)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        path = self._at(name)
        os.close(open_regular(path, sys.maxsize))
        yield path

    def writing(self, name: str) -> AbstractContextManager[Path]:
        return atomic_path(self._at(name))

    def exists(self, name: str) -> bool:
        return self._at(name).exists()

    def occupied(self, but: Collection[str] = ()) -> bool:
        return self.root.is_dir() and any(
            not path.name.startswith(".") and path.name not in but for path in self.root.iterdir()
        )

    def entries(self, folder: str) -> list[Entry]:
        found = []
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(self._at(folder)) as items,
        ):
            for item in items:
                if item.name.startswith("."):
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    status = _status(item)
                    if stat.S_ISDIR(status.st_mode):
                        continue
                    version = (
                        f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"  # a rename changes the inode
                    )
                    found.append(Entry(item.name, version, True))
        return sorted(found, key=lambda entry: entry.name)

    def delete(self, name: str) -> None:
        path = self._at(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(path, error) from error

    def delete_folder(self, folder: str) -> None:
        shutil.rmtree(self._at(folder), ignore_errors=True)

    def move(self, name: str, to: str) -> None:
        target = self._at(to)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._at(name).replace(target)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise write_error(target, error) from error

    def tidy(self) -> None:
        for folder, _, names in os.walk(self.root):
            for name in names:
                found = _TEMPORARY.fullmatch(name)
                if found and found["scope"] == scope() and start_time(int(found["pid"])) is None:
                    with contextlib.suppress(OSError):
                        (Path(folder) / name).unlink()


def _status(item: "os.DirEntry[str]") -> os.stat_result:
    """Return the status of what a folder's entry leads to, or of a link that leads nowhere."""
    try:
        return item.stat()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return item.stat(follow_symlinks=False)


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling to write; on success it is flushed to disk and renamed over ``path``.

    The temporary name starts with a dot, which dataset readers ignore. Nothing is left behind on failure.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{scope()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network filesystems refuse; the rename itself is still atomic
        pass
    finally:
        os.close(handle)


_UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


def write_error(path: Path, error: OSError) -> Exception:
    """Return the UserError for a write that the user can fix, or the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk of {path.parent} is full; free some space and run the same command again")
    if error.errno == errno.EFBIG:
        return UserError(f"{path} would exceed the limit on file sizes (ulimit -f); raise it and run again")
    if error.errno in _UNWRITABLE:
        return UserError(f"{path.parent} cannot be written ({os.strerror(error.errno)})")
    return error


# ---------------------------------------------------------------------------------------------------------
# Object storage


class ObjectFiles:
    """Objects below a prefix, through ``pyarrow.fs``; credentials come from the environment or the URL."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._opened: tuple[FileSystem, str] | None = None
        self._lock = threading.Lock()
        scheme = address.partition("://")[0]
        if scheme not in ("s3", "gs", "gcs", "abfs", "abfss"):
            raise UserError(
                f"{redact(address)}: no storage is known as {scheme}://; give a folder, s3://, gs:// or abfs://"
            )

    def describe(self, name: str = "") -> str:
        shown, _, options = redact(self.address).partition("?")
        if name:
            return f"{shown.rstrip('/')}/{name}"
        return f"{shown}?{options}" if options else shown

    def read(self, name: str, longest: int = LONGEST) -> bytes:
        with self._explained(name) as (system, path), system.open_input_file(path) as stream:
            if stream.size() > longest:
                raise Unusable(
                    f"{self.describe(name)} is {stream.size()} bytes long, and no file of this kind"
                )
            content: bytes = stream.read()
            return content

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        with self._explained(name) as (system, path), system.open_output_stream(path) as stream:
            stream.write(data)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="umscale-") as folder:
            copy = Path(folder) / Path(name).name
            with (
                self._explained(name) as (system, path),
                system.open_input_stream(path) as source,
                copy.open("wb") as target,
            ):
                shutil.copyfileobj(source, target, 1 << 22)
            yield copy

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="umscale-") as folder:
            copy = Path(folder) / Path(name).name
            try:
                yield copy
            except OSError as error:
                raise write_error(copy, error) from error
            with (
                self._explained(name) as (system, path),
                copy.open("rb") as source,
                system.open_output_stream(path) as target,
            ):
                shutil.copyfileobj(source, target, 1 << 22)

    def exists(self, name: str) -> bool:
        from pyarrow.fs import FileType

        with self._explained(name) as (system, path):
            return bool(system.get_file_info(path).type == FileType.File)

    def occupied(self, but: Collection[str] = ()) -> bool:
        from pyarrow.fs import FileSelector

        with self._explained("") as (system, path):
            found = system.get_file_info(FileSelector(path, allow_not_found=True))
        return any(not item.base_name.startswith(".") and item.base_name not in but for item in found)

    def entries(self, folder: str) -> list[Entry]:
        from pyarrow.fs import FileSelector

        with self._explained(folder) as (system, path):
            found = system.get_file_info(FileSelector(path, allow_not_found=True))
        found = [item for item in found if item.is_file and not item.base_name.startswith(".")]
        newest = max((item.mtime_ns or 0 for item in found), default=0)
        tick = int(OBJECT_STORAGE_TICK * 1e9)
        made = [
            Entry(item.base_name, f"{item.size}-{item.mtime_ns}", (item.mtime_ns or newest) < newest - tick)
            for item in found
        ]
        return sorted(made, key=lambda entry: entry.name)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._explained(name) as (system, path):
            system.delete_file(path)

    def delete_folder(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._explained(folder) as (system, path):
            system.delete_dir(path)

    def move(self, name: str, to: str) -> None:
        if not self.exists(name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        with self._explained(name) as (system, path):
            system.copy_file(path, f"{self._connect()[1]}/{_inside(to)}")
            system.delete_file(path)

    def tidy(self) -> None:
        """Nothing to do: an upload that was not completed is no object."""

    def _connect(self) -> "tuple[FileSystem, str]":
        with self._lock:
            if self._opened is None:
                from pyarrow.fs import FileSystem

                system, prefix = FileSystem.from_uri(self.address)
                self._opened = system, prefix.rstrip("/")
            return self._opened

    @contextlib.contextmanager
    def _explained(self, name: str) -> "Iterator[tuple[FileSystem, str]]":
        """Yield (filesystem, full path) and turn the storage's errors into one line without secrets."""
        try:
            system, prefix = self._connect()
            yield system, f"{prefix}/{_inside(name)}" if name else prefix
        except FileNotFoundError:
            raise
        except (OSError, ValueError, NotImplementedError) as error:  # ArrowInvalid is a ValueError
            cause = " ".join(redact(str(error)).split())
            raise UserError(f"{self.describe(name)}: {cause}") from None
