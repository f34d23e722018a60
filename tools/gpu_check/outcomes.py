"""A plugin of pytest that writes a row for each test as it ends; suite.py hands it where by environment variables."""
import os

from record import Record

record = None


def pytest_configure(config):
    global record
    if not hasattr(config, 'workerinput'):                              # xdist's workers report to their head
        record = Record(os.environ['GPU_CHECK_OUT'], 'tests', os.environ['GPU_CHECK_DEVICE'], 0)


def pytest_runtest_logreport(report):
    if record is None or (report.when != 'call' and report.passed):
        return
    if report.passed:
        record.row(report.nodeid, seconds=round(report.duration, 2))
    elif report.skipped:
        record.row(report.nodeid, 'not run', why=str(report.longrepr[-1] if report.longrepr else '').strip())
    else:
        lines = [line for line in str(report.longrepr).splitlines() if line.startswith('E ')] or ['no message']
        record.row(report.nodeid, 'failed', why=lines[0][1:].strip()[:300], log=lines[:10])
