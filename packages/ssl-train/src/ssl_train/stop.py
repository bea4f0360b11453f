"""Stopping a run without losing it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

EXIT_REQUEUE = 75
"""Exit code of a run that was told to stop and has saved: run the same command again to go on
(EX_TEMPFAIL)."""


class Interrupted(SystemExit):
    """The run was told to stop and has saved; exits with code 75."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_REQUEUE)
        self.step = step

    def __str__(self) -> str:
        """What a notebook shows after its stop button."""
        return f"told to stop, step {self.step:,} is saved: the same call goes on"


SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""The signals that tell a run to save and stop. Windows lacks the last two."""


class StopSignal:
    """Notes SIGNALS while it is entered; a second signal ends the process at once.

    The loop reads `requested` once a step. A SIGHUP that was ignored before stays ignored, as
    `nohup` wants it. A shell has the commands that it starts with `&` ignore SIGINT; that one is
    heeded all the same. Outside the main thread, Python cannot catch signals and nothing changes.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                if name.name != "SIGHUP" or signal.getsignal(name) is not signal.SIG_IGN:
                    self._previous[name] = signal.signal(name, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)  # type: ignore[arg-type]
        self._previous.clear()
