"""Memory mixers. Each module below registers one, so that `model.mixer.kind` selects it."""

from typing import TYPE_CHECKING, Annotated, Union

from lssvwm.worldmodel.mixers import attention, gru, tiled_delta, tiled_ssd
from lssvwm.worldmodel.mixers.base import MixerConfig, config_classes
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from pydantic import Field

__all__ = [
    "AnyMixerConfig",
    "TiledSSDConfig",
    "attention",
    "gru",
    "tiled_delta",
    "tiled_ssd",
]

if TYPE_CHECKING:
    AnyMixerConfig = MixerConfig
else:
    AnyMixerConfig = Annotated[Union[config_classes()], Field(discriminator="kind")]  # noqa: UP007
    """Settings of a mixer: the class of the registered ones that `kind` names."""
