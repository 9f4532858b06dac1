"""All families that are known, by their model type."""

from collections.abc import Mapping

from fedpipe_profiles.architectures.decoders import DECODERS
from fedpipe_profiles.architectures.encoders import ENCODERS
from fedpipe_profiles.architectures.family import Family
from fedpipe_profiles.architectures.gated import GATED

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (*GATED, *DECODERS, *ENCODERS)}
