"""Which graph makes pictures of latents."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ditedge.calibration.quality.pictures import picture_graph
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import RequestError
from tests.conftest import BUNDLES


@pytest.mark.parametrize(
    ("graphs", "expected"),
    [(("decoder", "preview"), "decoder"), (("decoder",), "decoder"), (("preview",), "preview"), ((), "decoder")],
)
def test_pictures_are_the_decoders_where_there_is_one(graphs: tuple[str, ...], expected: str) -> None:
    """Without either it is the decoder that a bundle is asked for, with the remedy."""
    bundle = open_bundle(BUNDLES / "gray1_cfg")
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": dict.fromkeys(graphs)}))
    assert picture_graph(bundle) == expected
    if not graphs:
        with pytest.raises(RequestError, match="has no decoder: "):
            bundle.require(picture_graph(bundle))
