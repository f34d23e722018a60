"""Which commit of e3va this is, for what is measured and written by it."""
import os
import subprocess


def commit():
    """Short hash of the checkout that this is, or None outside of one (and before its first commit)."""
    try:
        done = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=os.path.dirname(__file__), text=True,
                              capture_output=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
