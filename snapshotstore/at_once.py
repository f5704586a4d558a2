"""A few things at once, each of which waits for somebody else: for the store, for the daemon.

What ``concurrent.futures`` has for it loads logging, which takes longer than most of what is waited for here.
"""

import threading
from collections.abc import Callable
from typing import Any


def at_once(*tasks: Callable[[], Any]) -> list[Any]:
    """Call all of them at once, the last one in this thread; return what they gave, in order, when all have ended.

    Raises what one of them has raised, of several the first in order.
    """
    if not tasks:
        return []
    given: list[Any] = [None] * len(tasks)
    raised: list[BaseException | None] = [None] * len(tasks)

    def run(number: int) -> None:
        try:
            given[number] = tasks[number]()
        except BaseException as error:  # noqa: BLE001 # raised below
            raised[number] = error

    threads = [threading.Thread(target=run, args=(number,), name="at-once") for number in range(len(tasks) - 1)]
    for thread in threads:
        thread.start()
    run(len(tasks) - 1)
    for thread in threads:
        thread.join()
    for error in raised:
        if error is not None:
            raise error
    return given
