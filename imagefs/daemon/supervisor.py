"""``imagefs daemon``: a small process that keeps what must outlive the one that serves, and starts that one again.

It holds the instance's lock, the FUSE connection and the control socket (``kept``); so when the worker dies, or is replaced, nothing is
unmounted, nobody is told ENOTCONN, and who asks something then is answered a moment later. It never touches what is served: no content, no
trio, no pyfuse3. One thread, one loop, and no wait in it that has no end.

Invariants:

- one worker at most has been told to go, and another is told only when that one is gone: two would take each other's requests. One that
  cannot be killed, because it hangs in the kernel, is left behind (``crew``): it asks nothing of the connection any more;
- a connection whose introduction nobody has answered goes with its worker, as the kernel takes no second answer;
- when this process ends, whatever ended it, its worker does too, and with both the connection: programs get errors, and none hangs. Unless
  a service manager keeps the connection (``kept``): then they wait for the next supervisor.

What follows from what: ``docs/design/handover.md``. What does not live here: a worker as a process (``workers``), all of them (``crew``),
where they come from (``reserve``), what is said (``life``), how often it is tried again (``crashes``), who answers meanwhile (``standin``).
"""

import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from imagefs.config import ManagerSettings
from imagefs.daemon import workers
from imagefs.daemon.crashes import PAUSES, Crashes
from imagefs.daemon.crew import Crew
from imagefs.daemon.instance import CRASH_NAME, Role
from imagefs.daemon.kept import Kept
from imagefs.daemon.life import Word
from imagefs.daemon.notify import ServiceManager
from imagefs.daemon.plain_log import PlainLog
from imagefs.daemon.reserve import Reserve
from imagefs.daemon.signals import SIGNALS, Signals
from imagefs.daemon.standin import answer_one, status
from imagefs.daemon.wire import described, rebuilt
from imagefs.daemon.workers import Worker
from imagefs.errors import DaemonError, ImageFSError
from imagefs.fuse.handover import Connection
from imagefs.syscalls import adopt_orphans

TICK: Final = 1.0
"""Seconds after which the loop goes round, whether or not anything has happened."""

DRAIN_SECONDS: Final = 30.0
STOP_SECONDS: Final = 60.0
_LONG: Final = 0.5
"""A pause in which somebody should answer on the control socket."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How it is done. What is not the default is for tests, and for who has a connection already.

    ``command`` loads a worker's code. ``silence``: seconds without a sign of life after which it is ended. ``pauses``: before a worker is
    started again (``crashes``). ``resend`` False: as on a kernel that sends nothing again. ``adopted``: a connection that is mounted, and
    that nobody serves.
    """

    command: tuple[str, ...] = workers.COMMAND
    silence: float = 10.0
    pauses: tuple[float, ...] = PAUSES
    resend: bool | None = None
    adopted: Connection | None = None


def run_daemon(
    role: Role, ready: Callable[[], None], ways: Ways | None = None, manager: ServiceManager | None = None, again: Sequence[str] = ()
) -> bool:
    """Run a daemon until it is told to stop (control socket, SIGTERM, SIGINT), or to leave everything to the next one (SIGUSR2).

    ``ready`` is called when requests are served. Returns whether it has left everything to the next one, where the ``manager`` keeps it
    meanwhile; elsewhere this process becomes the next one, with the command ``again``. From the main thread only, whose signals it takes.
    Raises an ``ImageFSError`` if it cannot start; nothing stays mounted then.
    """
    ways = ways or Ways()
    manager = manager or ServiceManager(ManagerSettings())
    with Kept(role, manager, ways.adopted, again) as kept:
        has_left = _Supervisor(role, kept, manager, ready, ways).run()
        if has_left:
            kept.leave()
        return has_left


class _Supervisor:
    """See the module."""

    def __init__(self, role: Role, kept: Kept, manager: ServiceManager, ready: Callable[[], None], ways: Ways) -> None:
        self._role = role
        self._kept = kept
        self._manager = manager
        self._ways = ways
        self._log = PlainLog(role.log, role.config.log_level)
        self._crashes = Crashes(role.directory / CRASH_NAME, role.log, pauses=ways.pauses)
        self._selector = selectors.DefaultSelector()
        self._ready: Callable[[], None] | None = ready  # None once it was called: from then on a worker that dies is replaced
        self._reserve = Reserve(self._load, role.log, self._selector, self._log)
        self._reloading = False  # until the code on disk is loaded
        self._worker: Worker | None = None  # the one that was told to go
        self._next: Worker | None = None  # the one that takes over when that has left
        self._crew = Crew(self._known, self._hear, self._lost_or_replaced, self._selector, self._log)
        self._restart_at: float | None = None
        self._restarts = kept.restarts
        self._has_mounts = kept.connection is not None  # of a supervisor before this one: they are not given up because a worker dies
        self._turned_at = time.monotonic()
        self._started_at = time.time()
        self._stopping = self._leaves = self._over = False
        self._error: ImageFSError | None = None

    def run(self) -> bool:
        """Do all of it; return whether everything was left to the next supervisor."""
        if gone := self._kept.clear():
            self._log.warning("recovered", mountpoints=gone)
        adopt_orphans()
        with self._selector, Signals(SIGNALS, self._signalled) as signals:
            self._selector.register(signals, selectors.EVENT_READ, signals.come)
            try:
                self._start()
                while not self._over:
                    self._turn()
            finally:
                self._end()
        if self._error is not None:
            raise self._error
        return self._leaves

    def _turn(self) -> None:
        self._manager.is_alive()
        now = time.monotonic()
        due = self._crew.due() + ([] if self._restart_at is None else [self._restart_at])
        for key, _ in self._selector.select(min([TICK, *(max(0.0, at - now) for at in due)])):
            key.data()
        now = time.monotonic()
        if now - self._turned_at > 3 * TICK:
            # This process stood still, perhaps the whole machine did: a worker could not be heard, or could not speak.
            self._crew.forgive(now)
        self._turned_at = now
        self._crew.look()
        self._watch(now)

    def _known(self) -> list[Worker]:
        return [worker for worker in (self._worker, self._next) if worker is not None] + self._reserve.all()

    # -- starting -----------------------------------------------------------------------------------------------------------------------

    def _load(self) -> Worker:
        return Worker.started(self._ways.command, self._role, self._kept.listener, self._kept.lock)

    def _start(self) -> None:
        """Have a worker serve at once, or when its code is loaded; try again later where that cannot be."""
        self._restart_at = None
        try:
            worker = None if self._reloading else self._reserve.take()
            if worker is None:
                self._reserve.load()
            else:
                self._go(worker)
        except OSError as error:
            self._lost(f"it could not be started: {error}", None)

    def _go(self, worker: Worker) -> None:
        self._worker, self._restart_at = worker, None
        self._stand_in(False)
        self._log.info("worker_started", worker=worker.pid)
        worker.heard_at = time.monotonic()
        self._kept.count(self._restarts)
        worker.say("go", pid=os.getpid(), restarts=self._restarts, crash=self._crashes.first)

    def _reload(self) -> None:
        """Have the code on disk loaded, and a worker of it take over; the one that serves goes on until then."""
        if self._stopping or self._reloading or self._next is not None:
            return
        self._log.warning("reload")
        self._manager.reloading()
        if self._worker is None:
            self._reserve.let_go()
            self._start()
            return
        try:
            self._reserve.load(anew=True)
            self._reloading = True
        except OSError as error:
            self._keep(DaemonError(f"the new worker could not be started: {error}"))

    def _loaded(self) -> None:
        """Go on now that there is code to serve with."""
        reloading, self._reloading = self._reloading, False
        if self._stopping:
            return
        if self._worker is None:
            if self._restart_at is None:
                self._start()
        elif reloading:
            try:
                self._next = self._reserve.take()
            except OSError as error:
                self._keep(DaemonError(f"the new worker could not be started: {error}"))
                return
            self._leave(self._worker, DRAIN_SECONDS)
            self._worker.say("drain")

    def _keep(self, error: ImageFSError) -> None:
        """Say why there is no other worker after all."""
        self._log.error("reload_failed", error=error.message)
        if self._worker is not None:
            self._worker.say("kept", error=described(error))
            self._manager.ready(f"process {self._worker.pid} goes on: {error.message}")

    # -- what a worker says ---------------------------------------------------------------------------------------------------------------

    def _hear(self, worker: Worker, said: dict[str, Any]) -> None:
        match said["word"]:
            case "loaded" if worker is self._reserve.loading:
                self._reserve.has_loaded(said)
                self._loaded()
            case "fuse" if worker is self._worker:
                self._give_fuse(worker)
            case "answered":
                self._kept.note_answer()
            case "ready":
                worker.ready_at = time.monotonic()
                worker.patience = self._ways.silence
                self._manager.ready(f"process {worker.pid} serves")
                if self._ready is not None:
                    self._ready()
                    self._ready = None
            case "failed":
                worker.error = rebuilt(said["error"])
            case "reload":
                self._reload()
            case "stop" if worker is self._worker:
                self._stop(None)

    def _give_fuse(self, worker: Worker) -> None:
        try:
            fuse = self._kept.connection or self._kept.mount(resend=self._ways.resend)
            descriptor, must_close = fuse.lend()
        except Exception as error:  # noqa: BLE001 # the worker tells it to who wanted the mount
            worker.say("refused", error=described(error))
            return
        worker.say("given", descriptor, init=fuse.init.hex(), resends=fuse.resends, resend=fuse.resends and fuse.answered)
        if must_close:
            os.close(descriptor)

    # -- ends -----------------------------------------------------------------------------------------------------------------------------

    def _leave(self, worker: Worker, seconds: float) -> None:
        """Note that a worker is about to end, and how long it may take."""
        worker.leaving = True
        worker.kill_at = time.monotonic() + seconds

    def _stop(self, word: Word | None = "end") -> None:
        """End everything. ``word`` is what the worker is told: ``drain`` to leave everything to the next supervisor, None if it knows."""
        if self._stopping:
            self._leaves = self._leaves and word == "drain"
            return
        self._stopping = True
        self._leaves = word == "drain"
        self._manager.stopping()
        if self._next is not None:
            self._next.kill()
        if self._worker is None:
            self._over = True
            return
        self._leave(self._worker, DRAIN_SECONDS if self._leaves else STOP_SECONDS)
        if word is not None:
            self._worker.say(word)

    def _watch(self, now: float) -> None:
        """See that who should live does and who should end does, and start who is due."""
        self._crew.watch(now, may_be_silent=self._stopping)
        if self._restart_at is not None and now >= self._restart_at:
            self._start()
        if not self._stopping and self._worker is not None and self._worker.ready_at is not None:
            self._reserve.look_after(now)
        if not self._stopping and not self._reloading and self._next is None and not self._kept.is_whole():
            self._make_again()

    def _make_again(self) -> None:
        """Be found again, after somebody has deleted what is in the instance's directory: a command would start another daemon."""
        self._log.error("directory_deleted", directory=str(self._role.directory))
        stood_in = self._kept.listener.fileno() in self._selector.get_map()
        self._stand_in(False)
        try:
            self._kept.make_again()
        except (ImageFSError, OSError) as error:
            # At the next turn again.
            self._log.error("directory_not_made", error=str(error))
            return
        finally:
            self._stand_in(stood_in)
        # The worker has the old socket, and so has what is loaded; and it writes the table when it leaves.
        self._reload()

    def _lost_or_replaced(self, worker: Worker) -> None:
        """Go on without a worker, or without a template of workers."""
        if worker in self._reserve.all():
            self._unloaded(worker)
        elif worker is self._next:
            self._next = None
            if not self._stopping:
                self._keep(worker.error or DaemonError(f"the new worker cannot be used: {worker.how_it_ended()}"))
        elif worker.leaving and not self._stopping:
            self._log.info("worker_left", worker=worker.pid, how=worker.how_it_ended())
            self._restarts += 1
            self._replace()
        else:
            self._lost(worker.how_it_ended(), worker)

    def _unloaded(self, template: Worker) -> None:
        """Go on without a template: one that loads may be what is waited for."""
        was_loading = template is self._reserve.loading
        pause = self._reserve.lost(template)
        if self._worker is not None:
            self._log.error("template_died", template=template.pid, how=template.how_it_ended(), again_in=pause)
        if self._stopping or not was_loading:
            return
        reloading, self._reloading = self._reloading, False
        if self._worker is not None:
            if reloading:
                self._keep(template.error or DaemonError(f"the new worker cannot be used: {template.how_it_ended()}"))
        elif reloading:
            self._start()
        elif self._restart_at is None:
            self._lost(template.how_it_ended(), template)

    def _lost(self, how: str, worker: Worker | None) -> None:
        """Go on after the worker has died, or could not be started."""
        self._worker = None
        error = None if worker is None else worker.error
        if self._kept.connection is not None and not self._kept.connection.answered:
            self._kept.let_go()
        if self._stopping:
            self._over = True
        elif self._ready is not None and not self._has_mounts:
            last = (self._crashes.log_end().strip().splitlines() or [""])[-1]
            self._error = error or DaemonError(
                f"the daemon ended while starting: {how}", hint=f"its log ends with: {last}" if last else None
            )
            self._over = True
        else:
            now = time.monotonic()
            served = 0.0
            if worker is not None and worker.ready_at is not None:
                served = now - worker.ready_at
            else:
                self._reserve.let_go()  # the code on disk may be better
            pid, message = None if worker is None else worker.pid, None if error is None else error.message
            pause = self._crashes.note(how, pid=pid, error=message, served=served)
            self._log.error("worker_died", worker=pid, how=how, error=message, again_in=pause)
            self._manager.say(f"STATUS=process {pid} has died: {how}; another follows in {pause:g} s")
            self._restarts += worker is not None
            self._restart_at = now + pause
            self._replace()

    def _replace(self) -> None:
        """Have the next worker serve, where there is one."""
        self._worker = None
        worker, self._next = self._next, None
        if worker is not None:
            self._go(worker)
        elif self._restart_at is None:
            self._start()
        else:
            self._stand_in(self._restart_at - time.monotonic() > _LONG)

    def _end(self) -> None:
        self._crew.end()
        self._leaves = self._leaves and self._kept.can_be_left
        if not self._leaves:
            self._kept.end()

    # -- the outside ----------------------------------------------------------------------------------------------------------------------

    def _signalled(self, number: int) -> None:
        if number in {signal.SIGTERM, signal.SIGINT}:
            self._log.info("signal", number=number)
            self._stop()
        elif number == signal.SIGUSR2:
            self._log.info("signal", number=number)
            self._stop("drain" if self._kept.can_be_left else "end")
        elif number == signal.SIGHUP:
            self._reload()

    def _stand_in(self, wanted: bool) -> None:
        """Answer on the control socket, or leave that to a worker."""
        if wanted != (self._kept.listener.fileno() in self._selector.get_map()):
            if wanted:
                self._selector.register(self._kept.listener, selectors.EVENT_READ, self._answer)
            else:
                self._selector.unregister(self._kept.listener)

    def _answer(self) -> None:
        known = status(self._role, self._started_at, self._restarts, self._crashes.first)
        answer_one(self._kept.listener, known, {"stop": self._stop, "reload": self._reload})
