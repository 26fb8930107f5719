"""What the models of our documents (manifest, program, build record, quality) are made of: bounded fields.

The bounds stand in docs/format.md, "Limits", and are the C++ runtime's, too.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LARGEST = 2**63 - 1  # integers are those of C++
MAX_NUMBER = 3.0e38  # below float32's largest

Count = Annotated[int, Field(ge=1, le=LARGEST)]
Finite = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """No conversions: "3", 3.0 and true are no integers. Fields that are not declared are a later release's, and
    ignored (docs/format.md, "Reading rules")."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
