"""Files and folders that are there whole or not at all."""
import contextlib
import errno
import os
import shutil
from pathlib import Path


@contextlib.contextmanager
def whole(path):
    """Give a path beside `path` to write to, which takes its place at the end; nothing of it is left after an error.

    Raises ValueError with one line where it cannot be written, e.g. on a full disk.
    """
    path = Path(path)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if path.is_dir():
            shutil.rmtree(path)
        part.replace(path)
    except OSError as error:
        raise ValueError(unwritable(path, error)) from None
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):                           # it took its place, or was never made
                part.unlink()


def unwritable(path, error):
    """What to tell the user of an OSError."""
    what = 'the disk is full' if error.errno == errno.ENOSPC else error.strerror or error
    return f'cannot write {path}: {what}; make room, or choose another folder (E3VA_CACHE for data, --out for results)'
