"""The signals that end a program, as exceptions, so that what it began to write is removed."""

import signal
from types import FrameType

NAMES = ("SIGTERM", "SIGHUP")


class Ended(BaseException):
    """A signal has asked this program to end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def raise_them() -> None:
    """From now on raise ``Ended`` at the first SIGTERM or SIGHUP, unless it is ignored (by nohup, say)."""
    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    for name in NAMES:  # another one would interrupt the clearing up
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    raise Ended(number)
