"""How many positions a model has, from its configuration alone."""

from collections.abc import Mapping

from fedpipe_profiles.architectures.families import FAMILIES

_USUAL = "max_position_embeddings"


def longest_sequence(config: Mapping[str, object]) -> int | None:
    """Tokens of the longest example that the model is made for; None where the configuration does not say.

    What an agent compares `train.sequence_length` with.
    """
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    own = _USUAL if family is None else family.keys.get(_USUAL, _USUAL)
    fallback = None if family is None else family.defaults.get(_USUAL)
    value = config.get(own, config.get(_USUAL, fallback))
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
