"""What no file of e3va/ and tools/ does: write over a file, hand a user's text to a shell, run what it has read."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {file.relative_to(ROOT).as_posix(): file.read_text() for folder in ('e3va', 'tools')
         for file in sorted((ROOT / folder).rglob('*.py'))}
SHELLS = {file.relative_to(ROOT).as_posix(): file.read_text() for file in sorted((ROOT / 'tools').rglob('*.sh'))}

# A habit: what it looks like, and the files that may, with the reason.
HABITS = {
    'writes a file in place, and not by e3va/files/whole.py': (
        r"\bopen\([^)\n]*['\"][wxar]b?\+|\bopen\([^)\n]*['\"][wxa]b?['\"]|\bwrite_(text|bytes)\(|\bsavefig\(|"
        r'\bsave_file\(|\bimwrite\(|torch\.save\((?!\w+, (file|content)\))', {
            'e3va/files/whole.py': 'is the way',
            'e3va/datasets/layouts.py': 'into a folder that gets its name at the end',
            'e3va/datasets/synthetic.py': 'the mark of that folder',
            'tools/build_mmcv.py': 'into a scratch folder', 'tools/gpu_check/training.py': 'into a scratch folder',
            'tools/analysis_tools/support.py': 'to nowhere',
            'tools/analysis_tools/cost.py': 'a trial: it appends nothing',
            'tools/gpu_check/record.py': 'also where e3va cannot be imported',
            'tools/gpu_check/page.py': 'also where e3va cannot be imported',
            'tools/gpu_check/pictures.py': 'also where e3va cannot be imported',
            'tools/sweep.py': 'appends to a log', 'tools/predict.py': 'appends to a log',
            'tools/tune.py': 'appends to a log', 'tools/search.py': 'appends whole lines',
            'tools/tuning/page.py': 'into memory',
            'tools/tuning/task.py': 'into a folder that gets its name at the end',
            'tools/misc/mmcv_operators.py': 'a check by hand',
            'tools/demo/crops.py': 'tools/demo/whole.py', 'tools/demo/digits.py': 'tools/demo/whole.py',
            'tools/demo/fetch.py': 'tools/demo/whole.py',
            'tools/demo/prepare.py': 'tools/demo/whole.py', 'tools/demo/voc.py': 'tools/demo/whole.py'}),
    'hands a text to a shell': (r'shell=True|\bos\.(system|popen|exec[lv]p?e?|spawn\w+)\(|\bgetoutput\(', {}),
    'runs a text': (r'(?<![\w.])(eval|exec)\(|\bcompile\(.*[\'"]exec[\'"]', {}),
    'reads a pickle': (
        r'\b(pickle|joblib|dill|cloudpickle)\.loads?\(|\bUnpickler\(|allow_pickle=True|read_pickle\(|'
        r'torch\.load\((?!.*weights_only=True)|weights_only=False', {
            'e3va/files/checkpoint.py': 'where the user has said --trust-checkpoint',
            'tools/misc/mmcv_operators.py': "its own file, by torch's default, as data"}),
    'reads YAML that names classes': (r'\byaml\.(unsafe_|full_)?load(_all)?\(', {}),
    'unpacks without looking at the names': (r'\bextractall\((?!.*filter=.data.)|\bunpack_archive\(', {}),
    'takes a name that another can guess': (r'\bmktemp\(|[\'"]/tmp/', {}),
    'leaves out the check of a certificate': (r'verify=False|_create_unverified_context|CERT_NONE', {}),
}


@pytest.mark.parametrize('habit', HABITS)
def test_habits(habit):
    pattern, allowed = HABITS[habit]
    found = {name for name, text in FILES.items() if re.search(pattern, text)}
    assert found - set(allowed) == set(), f'{sorted(found - set(allowed))} {habit}'
    assert set(allowed) - found == set(), 'no longer needed'


@pytest.mark.parametrize('habit,line', [
    ('writes a file in place, and not by e3va/files/whole.py', "open(path, 'w')"),
    ('writes a file in place, and not by e3va/files/whole.py', 'torch.save(model, path)'),
    ('hands a text to a shell', 'subprocess.run(text, shell=True)'), ('runs a text', 'eval(text)'),
    ('reads a pickle', 'torch.load(path)'), ('reads a pickle', 'torch.load(path, weights_only=False)'),
    ('reads YAML that names classes', 'yaml.load(text)'), ('takes a name that another can guess', 'tempfile.mktemp()'),
    ('unpacks without looking at the names', 'archive.extractall(folder)')])
def test_a_habit_is_seen(habit, line):
    assert re.search(HABITS[habit][0], line)


def test_scripts_hand_on_arguments_as_they_are():
    """No eval, no `bash -c` of a text; $@ and paths stand in quotes; scratch files by mktemp."""
    assert SHELLS
    for name, text in SHELLS.items():
        lines = [line for line in text.splitlines() if not line.lstrip().startswith('#')]
        seen = r'\beval\b|\b(ba)?sh -c\b|(?<!")\$@|(?<!")\$\{@|(?<![\w"/])/tmp/'
        odd = [line for line in lines if re.search(seen, line)]
        assert not odd, f'{name}: {odd}'


def test_downloads_are_pinned():
    """What the demo fetches is one file each, by its sha256."""
    text = FILES['tools/demo/fetch.py']
    assert 'sha256' in text and re.search(r"'[0-9a-f]{64}'", ''.join(
        FILES[name] for name in FILES if name.startswith('tools/demo/')))
