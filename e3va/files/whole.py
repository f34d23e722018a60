"""Files that are there whole or not at all, and folders in which one run at a time writes."""
import contextlib
import errno
import os
import secrets
import socket
from pathlib import Path

from mmengine.logging import print_log

try:
    import fcntl
except ImportError:                                                     # Windows
    fcntl = None

LOCK = '.e3va-lock'                                                     # in the folder of a run: who writes there
FULL = (errno.ENOSPC, errno.EDQUOT)


class Unwritten(ValueError):
    """A file that could not be written; what was there before is as it was."""


@contextlib.contextmanager
def replacing(path):
    """An open binary file, which takes the place of `path` at the end of the block, when all of it is on the disk.

    After an error `path` is what it was; so it is after a kill, and what that leaves beside it the next call removes.

    Raises:
        Unwritten: `path` cannot be written (a full disk, no permission, a folder).
    """
    path = Path(os.path.realpath(path))                                 # a link stays one
    if path.exists() and not path.is_file():
        raise Unwritten(f'{path} cannot be written: it is there and is no ordinary file; name another')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left(path.parent)
        with scratch(path.parent) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:                            # torch.save hides the one behind the other
        cause = behind(error)
        if cause is None:
            raise
        raise Unwritten(f'{path} cannot be written: {cause.strerror or cause}; what was there before is as it was. '
                        f'{"Make room" if cause.errno in FULL else "Look at the folder"}, or name another place'
                        ) from error


def spare(path, *read):
    """ValueError where the file `path`, to be written, is one of those that are `read`."""
    for other in read:
        if other and os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other):
            raise ValueError(f'{path} is to be written, and {other} is the same file, which is read: name another one')


def write(path, content):
    """Have `content`, a text or bytes, in the file `path` whole, or leave that as it was; see `replacing`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save_figure(figure, path, **options):
    """Write a figure of matplotlib in the format of its name; see `replacing`."""
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:] or None, **options)


@contextlib.contextmanager
def scratch(folder):
    """A new file in `folder`, open and locked; it is removed where the block has not given it another name."""
    while True:
        file = open(folder / f'.e3va-{secrets.token_hex(4)}.part', 'xb')  # not tempfile's: that ignores the umask
        if lock(file, 'flock') is not False and os.path.exists(file.name):
            break
        file.close()                                                    # taken for a left one before it was locked
    try:
        with file:
            yield file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(file.name)


def remove_left(folder):
    """Remove the scratch files of processes that live no more: the kernel has freed their locks."""
    for path in folder.glob('.e3va-*.part'):
        with contextlib.suppress(OSError), open(path, 'r+b') as file:
            if lock(file, 'flock'):
                path.unlink()


def sync(folder):
    """Have the names in a folder on the disk."""
    with contextlib.suppress(OSError):                                  # some network file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def behind(error):
    """The OSError that an error is, or hides; None."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def lock(file, kind):
    """Take the lock of an open file; the kernel frees it when the process ends, however it ends.

    Args:
        kind (str): 'flock', of this open file, or 'lockf', of this process and not of those that it forks.

    Returns:
        True; False where it is taken; None where the file system has no locks.
    """
    try:
        getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (OSError, AttributeError):
        return None
    return True


@contextlib.contextmanager
def alone(folder):
    """Have a folder to oneself; ValueError where another live process has it."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, LOCK)
    with open(path, 'a+') as file:
        taken = lock(file, 'lockf')                                     # a killed run's workers outlive it for seconds
        if taken is False:
            file.seek(0)
            raise ValueError(f'another run writes to {folder} ({file.read().strip() or "it has just begun"}): wait for '
                             'its end, or give this one a --work-dir of its own')
        if taken is None:
            print_log(f'the file system of {folder} has no locks: see to it that no second run writes there')
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        yield
