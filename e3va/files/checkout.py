"""Which commit of e3va this is, for what is measured and written by it."""
import os
import subprocess


def commit():
    """Short hash of the checkout that this is, with `-dirty` where its files differ from that; None outside of one."""
    try:
        done = subprocess.run(['git', 'describe', '--always', '--dirty', '--exclude=*'], cwd=os.path.dirname(__file__),
                              text=True, capture_output=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
