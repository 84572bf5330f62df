"""The preset's section `model`: which backbone, which heads, and what the network expects of an image."""

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, SerializeAsAny

from ccnet_cli.models.backbones import BACKBONES
from ccnet_cli.models.heads import FCN, HEADS, RCCA
from ccnet_cli.parts import Flag, Section, chooser

Mean = Annotated[float, Field(strict=True, ge=0, le=255, allow_inf_nan=False)]
Deviation = Annotated[float, Field(strict=True, ge=1e-3, le=1e6, allow_inf_nan=False)]


class Model(Section):
    """The network; mean and std are in channel_order, for pixel values 0 to 255.

    auxiliary is a second head on the backbone's maps but the deepest, for training alone; null leaves it out.
    """

    backbone: Annotated[SerializeAsAny[Section], PlainValidator(chooser(BACKBONES, "model.backbone"))]
    head: Annotated[SerializeAsAny[Section], PlainValidator(chooser(HEADS, "model.head", default="rcca"))] = RCCA()
    auxiliary: Annotated[
        SerializeAsAny[Section] | None, PlainValidator(chooser(HEADS, "model.auxiliary", optional=True, default="fcn"))
    ] = FCN()
    channel_order: Literal["bgr", "rgb"] = "bgr"
    mean: tuple[Mean, Mean, Mean] = (104.00698793, 116.66876762, 122.67891434)
    std: tuple[Deviation, Deviation, Deviation] = (1.0, 1.0, 1.0)
    align_corners: Flag = True
