"""Code in a Python that has not loaded anything yet."""

import subprocess
import sys


def printed_by(code: str) -> str:
    """What the code prints in a process of its own, which must end well."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
