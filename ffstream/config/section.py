"""What all sections of options have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Immutable. An unknown option is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
