"""Files are whole or not there, whatever ends their writer, and one run at a time writes to a folder."""
import errno
import os
import resource
import signal
import stat
import time
from contextlib import contextmanager

import pytest
import torch

from e3va.files import whole as files


@contextmanager
def in_a_child(work):
    """A process that runs work(wait), which is over, or has called `wait`, when the block begins; then its pid."""
    (read, told), child = os.pipe(), os.fork()
    if not child:
        try:
            work(lambda: (os.write(told, b'.'), signal.pause()))
        finally:
            os._exit(0)
    os.close(told)
    os.read(read, 1)                                                    # also ends when the child does
    os.close(read)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def names(folder):
    return sorted(os.listdir(folder))


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / 'new' / 'file'
    for content in ('text \N{GREEK SMALL LETTER ALPHA}', b'bytes'):
        files.write(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(path.parent) == ['file']
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask          # as open() makes it


def test_a_link_stays_one(tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'there' / 'file')
    files.write(tmp_path / 'link', 'new')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'there' / 'file').read_text() == 'new'


def test_the_file_is_on_the_disk_before_its_name_and_the_name_then(tmp_path, monkeypatch):
    steps = []
    for name in ('fsync', 'replace'):
        monkeypatch.setattr(os, name, lambda *args, real=getattr(os, name), name=name: (
            steps.append((name, stat.S_ISDIR(os.fstat(args[0]).st_mode) if name == 'fsync' else None)), real(*args)))
    files.write(tmp_path / 'file', 'new')
    assert steps == [('fsync', False), ('replace', None), ('fsync', True)]


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_leaves_the_old_file(tmp_path, monkeypatch, error):
    files.write(tmp_path / 'file', 'old')
    monkeypatch.setattr(os, 'fsync', lambda handle: (_ for _ in ()).throw(OSError(error, os.strerror(error))))
    with pytest.raises(ValueError) as raised:
        files.write(tmp_path / 'file', 'new')
    remedy = 'Look at the folder' if error == errno.EIO else 'Make room'
    assert str(raised.value) == (f'{tmp_path}/file cannot be written: {os.strerror(error)}; what was there before is '
                                 f'as it was. {remedy}, or name another place')
    assert (tmp_path / 'file').read_text() == 'old' and names(tmp_path) == ['file']


def test_a_disk_that_fills_under_torch(tmp_path):
    """torch.save raises a RuntimeError about positions in the file, and hides why."""
    torch.save('old', tmp_path / 'file.pth')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ValueError, match='file.pth cannot be written: File too large'), \
                files.replacing(tmp_path / 'file.pth') as file:
            torch.save(torch.zeros(100_000), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(tmp_path / 'file.pth') == 'old' and names(tmp_path) == ['file.pth']


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match='^mine$'), files.replacing(tmp_path / 'file'):
        raise RuntimeError('mine')
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / 'file'):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_no_ordinary_file(tmp_path):
    for path in (tmp_path, '/dev/null'):
        with pytest.raises(ValueError, match=f'{path} cannot be written: it is there and is no ordinary file'):
            files.write(path, 'new')
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='file/below cannot be written: File exists'):
        files.write(tmp_path / 'file' / 'below', 'new')


def test_what_a_killed_writer_left_goes_and_what_a_live_one_writes_stays(tmp_path):
    def write(wait, path):
        with files.replacing(path) as file:
            file.write(b'half')
            file.flush()
            wait()

    files.write(tmp_path / 'a', 'old')
    with in_a_child(lambda wait: write(wait, tmp_path / 'a')):
        assert len(names(tmp_path)) == 2
        files.write(tmp_path / 'b', 'new')
        assert len(names(tmp_path)) == 3                                # it lives
    assert len(names(tmp_path)) == 3 and (tmp_path / 'a').read_text() == 'old'
    files.write(tmp_path / 'b', 'newer')
    assert names(tmp_path) == ['a', 'b'] and (tmp_path / 'a').read_text() == 'old'


def test_a_folder_of_one_s_own(tmp_path):
    def hold(wait):
        with files.alone(tmp_path):
            if not os.fork():                                           # a loader's worker
                time.sleep(5)
                os._exit(0)
            wait()

    for _ in range(2):
        with in_a_child(hold) as child, pytest.raises(ValueError) as raised, files.alone(tmp_path):
            raise AssertionError
        assert str(raised.value).startswith(f'another run writes to {tmp_path} (process {child} on ')
    with files.alone(tmp_path):                                         # killed, with a worker that outlives it
        assert str(os.getpid()) in (tmp_path / files.LOCK).read_text()


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr('fcntl.flock', none)
    monkeypatch.setattr('fcntl.lockf', none)
    with files.alone(tmp_path / 'run'):
        files.write(tmp_path / 'run' / 'file', 'new')
    assert 'run has no locks: see to it' in capsys.readouterr().out
    assert (tmp_path / 'run' / 'file').read_text() == 'new'
