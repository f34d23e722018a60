"""Which commit is written into rows and deltas: that of the files that ran."""
import importlib.util
import shutil
import subprocess

from e3va.files import checkout


def test_commit(tmp_path):
    def git(*words):
        return subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *words], cwd=tmp_path, check=True,
                              capture_output=True, text=True).stdout.strip()

    shutil.copy(checkout.__file__, tmp_path / 'checkout.py')
    spec = importlib.util.spec_from_file_location('checkout_there', tmp_path / 'checkout.py')
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    assert there.commit() is None                                       # no checkout
    git('init', '-q')
    git('add', 'checkout.py')
    assert there.commit() is None                                       # nothing committed
    git('commit', '-qm', 'first')
    git('tag', '-a', 'v1', '-m', 'a tag is no hash')
    short = git('rev-parse', '--short', 'HEAD')
    (tmp_path / 'work_dirs').mkdir()                                    # what is not tracked is no change
    (tmp_path / 'work_dirs/rows.jsonl').write_text('{}')
    assert there.commit() == short
    with open(tmp_path / 'checkout.py', 'a') as file:
        file.write('# changed\n')
    assert there.commit() == f'{short}-dirty'
