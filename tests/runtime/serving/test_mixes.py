"""Random mixes of images give each image as it is alone, bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import Cancelled, open_bundle
from tests.conftest import CASES
from tests.runtime.serving.mixes import alone, random_mix, scheduling, through

SECONDS = 60


def check_mixes(folder: Path, numbers: range) -> None:
    """Mix after mix through a scheduler of random sizes: the pictures of whoever was not cancelled, bit by bit."""
    cancelled = compared = 0
    shared = []
    for number in numbers:
        random = np.random.default_rng(number)
        most, a_call = (int(random.integers(1, 7)) for _ in range(2))
        with scheduling(folder, max_batch=most, a_call=a_call) as scheduler:
            mix = random_mix(open_bundle(folder), random)
            tickets = through(scheduler, folder.name, mix)
            for ticket, one in zip(tickets, mix, strict=True):
                try:
                    image = ticket.result(SECONDS)
                except Cancelled:
                    assert one.cancelled is not None
                    cancelled += 1
                    continue
                shared.append(ticket.together)
                compared += 1
                assert np.array_equal(image, alone(scheduler.sessions[folder.name], one.asked)), (number, one)
    assert compared > 2 * len(numbers) and cancelled > 0 and max(shared) > 1


def test_a_few_random_mixes_are_their_images_alone(golden_bundle) -> None:
    check_mixes(golden_bundle("gray1_cfg"), range(8))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_hundred_random_mixes_are_their_images_alone(golden_bundle, case: str) -> None:
    check_mixes(golden_bundle(case), range(1000, 1200 if case == "gray1_cfg" else 1050))
