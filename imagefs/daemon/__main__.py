"""``python -m imagefs.daemon``: a daemon in the background, as ``imagefs.daemon.client`` starts it.

It forks at once, before anything has threads, so that its starter can wait for the first process and is nobody's parent. Then it
says on ``--ready-fd`` in one line whether it serves, in the form of an answer on the control socket.
"""

import os
import sys


def main() -> None:
    """Run the daemon that the arguments describe."""
    if os.fork():
        os._exit(0)
    os.setsid()
    from imagefs.daemon.background import run_background  # noqa: PLC0415 # the first half needs none of it

    sys.exit(run_background(sys.argv[1:]))


main()
