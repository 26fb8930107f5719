"""What of PyTorch meets the rest: its threads during an export, and its tensors as labels and seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditedge.extras import exporter
from ditedge.runtime import Session, generate, open_bundle


def test_pytorch_keeps_to_it_in_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container of two processors on a machine of 64 it would start 64 threads, that wait for each other."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setattr("ditedge.runtime.processors.usable_processors", lambda: 3)
        exporter()
        assert torch.get_num_threads() == 3
        monkeypatch.setattr("ditedge.runtime.processors.usable_processors", lambda: 8)
        exporter()
        assert torch.get_num_threads() == 3, "what somebody has set lower stays"
    finally:
        torch.set_num_threads(before)


def test_tensors_are_labels_and_seeds(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = bundle.program(sampler="ddim", steps=1)
    with Session(bundle) as session:

        def images(labels, seeds, away_from) -> np.ndarray:
            return generate(bundle, labels, seeds, away_from=away_from, program=program, session=session)

        wanted = images([1, 2], [3, 4], [5, 6])
        for labels, seeds, away in (
            (torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([5, 6])),
            ([torch.tensor(1), 2], [torch.tensor(3), np.uint64(4)], (5, 6)),
        ):
            assert np.array_equal(images(labels, seeds, away), wanted)
