"""Faults of the loop for plans, whatever is behind it, that every double of a GPU has to notice."""

from __future__ import annotations

from ditedge.runtime.loop import device_run, device_steps


def one_state(monkeypatch) -> None:
    real = device_steps.Steps.__init__

    def init(self, *arguments) -> None:
        real(self, *arguments)
        self.states[1] = self.states[0]

    monkeypatch.setattr(device_steps.Steps, "__init__", init)


def waiting_by_synchronising(monkeypatch) -> None:
    monkeypatch.setattr(device_run, "wait", lambda gpu, event: gpu.synchronize(next(iter(gpu.streams))))
