"""Which configurations are refused before anything is counted, and what each is told."""

from collections.abc import Iterable, Mapping

from fedpipe_profiles.architectures.errors import ArchitectureError, quoted
from fedpipe_profiles.architectures.families import FAMILIES

_EXPERT_KEYS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "n_experts",
    "num_experts_per_tok",
)


def _types(names: str) -> frozenset[str]:
    return frozenset(names.split())


_EXPERT_TYPES = _types(
    "aria_text axk1 axk2 cohere2_moe dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots1 ernie4_5_moe "
    "exaone_moe flex_olmo glm4_moe glm4_moe_lite glm_moe_dsa gpt_oss granitemoe granitemoe_swa granitemoeshared "
    "hunyuan_v1_moe jetmoe llama4 llama4_text longcat_flash minimax minimax_m2 mixtral olmoe phimoe qwen2_moe "
    "qwen3_5_moe qwen3_5_moe_text qwen3_moe solar_open switch_transformers"
)
_STATE_TYPES = _types(
    "bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba mamba2 nemotron_h olmo_hybrid "
    "qwen3_5 qwen3_5_text qwen3_next recurrent_gemma rwkv xlstm zamba zamba2"
)
_PAIRED_TYPES = _types(
    "bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 mvp nllb-moe pegasus "
    "pegasus_x plbart prophetnet t5 t5gemma t5gemma2 umt5 whisper"
)


def known_types() -> str:
    """The model types that are known, as a list for a person."""
    return ", ".join(sorted(FAMILIES))


def refuse_unsupported(config: Mapping[str, object]) -> None:
    """Refuse what is not one plain transformer in one piece.

    Raises:
        ArchitectureError: for an encoder-decoder, experts, recurrent layers, a wrapped or a quantized model.
    """
    if not isinstance(config, Mapping):
        raise ArchitectureError(f"a configuration is a group of keys and values, got a {type(config).__name__}")
    name = _model_type(config)
    if name in _EXPERT_TYPES or any(_many(config.get(key)) for key in _EXPERT_KEYS):
        raise ArchitectureError(
            f"{quoted(name)} is a mixture of experts: which expert a token takes is not known before it is trained, so "
            f"no plan can be made. Use a dense model: {known_types()}"
        )
    if name in _PAIRED_TYPES or config.get("is_encoder_decoder") is True:
        raise ArchitectureError(
            f"{quoted(name)} has an encoder and a decoder, which neither task trains. Use one of: {known_types()}"
        )
    if name in _STATE_TYPES or _has_recurrent_layers(config):
        raise ArchitectureError(
            f"{quoted(name)} has recurrent (state-space or linear attention) layers, whose cost is not known. "
            f"Use a plain transformer: {known_types()}"
        )
    if config.get("quantization_config") is not None:
        raise ArchitectureError(
            "the configuration is of a quantized model: give the plain one, each device quantizes it to its own bits"
        )
    if name not in FAMILIES and isinstance(config.get("text_config"), Mapping):
        raise ArchitectureError(
            f"{quoted(name)} wraps a text model together with others: give a model of text alone, one of: "
            f"{known_types()}"
        )


def refuse_unknown(name: object) -> ArchitectureError:
    """What to raise for a model type without a family."""
    return ArchitectureError(
        f"model type {quoted(name)} is not known in detail, so its cost cannot be told from its configuration. "
        f"Known are: {known_types()}. A device that holds the model can still read its shape: start a run"
    )


def _model_type(config: Mapping[str, object]) -> str:
    name = config.get("model_type")
    if not isinstance(name, str) or not name:
        said = "no model_type" if name is None else f"model_type {quoted(name)}"
        raise ArchitectureError(f"the configuration has {said}, it must be one of: {known_types()}")
    return name


def _many(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 1


def _has_recurrent_layers(config: Mapping[str, object]) -> bool:
    kinds = config.get("layer_types") or config.get("layers_block_type")
    if not isinstance(kinds, Iterable) or isinstance(kinds, str):
        return False
    return any(kind in ("mamba", "linear_attention", "recurrent", "conv", "hybrid") for kind in kinds)
