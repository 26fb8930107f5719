"""Prompts of images that wait, encoded by a thread of its own: a slow text encoder holds up nobody's next step."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from ..errors import Cancelled, DitedgeError
from ..loop.session import Session
from .ticket import ENDED, Ticket

log = logging.getLogger(__name__)


class Preparing:
    """Makes tickets `ready`, or ends them."""

    def __init__(
        self, sessions: Mapping[str, Session], more: threading.Condition, following: Callable[[], Ticket | None]
    ) -> None:
        """more: guards the queues. following: whose turn it is, if anybody's; called under that guard."""
        self._sessions, self._more, self._following = sessions, more, following
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="ditedge-preparing", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """After the prompt that is being encoded: whose ticket is cancelled before, does not take long."""
        with self._more:
            self._closing = True
            self._more.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._more:
                while (ticket := self._following()) is None and not self._closing:
                    self._more.wait()
                if ticket is None or self._closing:
                    return
            self._prepare(ticket)
            with self._more:
                if ticket.state in ENDED:
                    ticket.run.release()
                self._more.notify_all()
            del ticket  # and what it holds

    def _prepare(self, ticket: Ticket) -> None:
        try:
            self._sessions[ticket.model].prepare(ticket.run, ticket.cancelled)
            ticket.ready = True
        except (Cancelled, DitedgeError) as error:
            ticket.end(None, error)
        except Exception as error:
            log.exception("the prompt of an image of %s was not encoded", ticket.model)
            ticket.end(None, error)
