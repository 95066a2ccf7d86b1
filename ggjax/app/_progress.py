"""Live progress on stderr: bars in a terminal, a line now and then elsewhere."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Report(Protocol):
    """Tells how far a stage has come: its name, the steps done, and numbers to show beside them."""

    def __call__(self, stage: str, done: int, /, **numbers: float) -> None: ...


@contextlib.contextmanager
def progress(stages: Mapping[str, tuple[int, float]], *, quiet: bool = False) -> Iterator[Report]:
    """Show the progress of named stages until the block ends.

    Args:
      stages: for every stage its number of steps, and what a step costs in any one unit, for the time left.
      quiet: show nothing.

    Yields:
      A ``Report``.
    """
    if quiet:
        yield lambda stage, done, /, **numbers: None
    elif sys.stderr.isatty():
        with _bars(stages) as report:
            yield report
    else:
        yield _lines(stages)


@contextlib.contextmanager
def _bars(stages: Mapping[str, tuple[int, float]]) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}", style="cyan"),
    )
    whole = Progress(
        TextColumn("[bold]time left"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        speed_estimate_period=30,
    )
    bars = Progress(*columns, console=whole.console)
    tasks = {name: bars.add_task(name, total=steps, numbers="") for name, (steps, _) in stages.items()}
    everything = whole.add_task("", total=sum(steps * cost for steps, cost in stages.values()))

    def report(stage: str, done: int, /, **numbers: float) -> None:
        bars.update(tasks[stage], completed=done, numbers=_text(numbers))
        spent = (bars.tasks[tasks[name]].completed * cost for name, (_, cost) in stages.items())
        whole.update(everything, completed=sum(spent))

    with Live(Group(bars, whole), console=whole.console, refresh_per_second=4):
        yield report


def _lines(stages: Mapping[str, tuple[int, float]]) -> Report:
    quarters = dict.fromkeys(stages, -1)  # a line at the beginning too

    def report(stage: str, done: int, /, **numbers: float) -> None:
        steps = stages[stage][0]
        quarter = 4 * done // steps
        if quarter > quarters[stage]:
            quarters[stage] = quarter
            print(f"{stage}: {done}/{steps}  {_text(numbers)}".rstrip(), file=sys.stderr, flush=True)

    return report


def _text(numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
