"""Pictures of latents, made by a thread of its own: a decoder that takes long does not hold up anybody's next step.

Each is decoded alone, so that its pixels are those of a run of one image. `decoder` and `preview` are engines that
nobody else calls.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping

import numpy as np

from ..errors import Cancelled, NotFiniteError
from ..loop.finite import broken_images, not_finite, not_finite_error
from ..loop.session import Session
from .ticket import Estimate, Ticket

log = logging.getLogger(__name__)


class Decoding:
    """Latents in, pixels into their tickets; images that are done go before estimates of those that are not."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._sessions = sessions
        self._done: deque[tuple[Ticket, np.ndarray]] = deque()
        self._estimates: dict[Ticket, tuple[int, np.ndarray]] = {}  # the newest of each
        self._more = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="ditedge-decoding", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Images whose pixels are still to be made."""
        return len(self._done)

    def finish(self, ticket: Ticket, latent: np.ndarray) -> None:
        """latent [C, H, W] float32: the sample."""
        with self._more:
            self._estimates.pop(ticket, None)
            self._done.append((ticket, latent))
            self._more.notify()

    def show(self, ticket: Ticket, step: int, latent: np.ndarray) -> None:
        """latent [C, H, W] float32: what it would be, after that step; where several wait, the newest is shown."""
        with self._more:
            self._estimates[ticket] = (step, latent)
            self._more.notify()

    def close(self) -> None:
        """After what is there was made."""
        with self._more:
            self._closing = True
            self._more.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._more:
                while not (self._done or self._estimates or self._closing):
                    self._more.wait()
                if self._done:
                    ticket, latent, step = *self._done[0], None
                elif self._estimates:
                    ticket = next(iter(self._estimates))
                    step, latent = self._estimates.pop(ticket)
                else:
                    return
            self._make(ticket, latent, step)
            if step is None:
                self._done.popleft()  # now: while it is made, it counts as backlog

    def _make(self, ticket: Ticket, latent: np.ndarray, step: int | None) -> None:
        """step: of an estimate."""
        try:
            if step is None and not ticket.wanted:
                raise Cancelled("cancelled before its pixels were made")
            if step is None:
                ticket.end(self._pixels(ticket, latent))
            elif ticket.wanted and np.isfinite(latent).all():
                ticket.estimate = Estimate(step, self._sessions[ticket.model].preview(latent[None])[0])
                ticket.tell()
        except (Cancelled, NotFiniteError) as error:
            ticket.end(None, error)
        except Exception as error:
            log.exception("the pixels of an image of %s were not made", ticket.model)
            ticket.end(None, error)

    def _pixels(self, ticket: Ticket, latent: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 1 or 3]; rough ones where the bundle has no decoder. Raises NotFiniteError."""
        session, latents = self._sessions[ticket.model], latent[None]
        bad = not_finite(latents)
        if bad.any():
            labels = [subject] if isinstance(subject := ticket.asked.subject, int) else []
            broken = broken_images(bad, 0, labels, [ticket.asked.seed], None)
            raise not_finite_error(session.bundle, broken, latents)
        pictures = session.images if "decoder" in session.bundle.manifest.graphs else session.preview
        return pictures(latents)[0]
