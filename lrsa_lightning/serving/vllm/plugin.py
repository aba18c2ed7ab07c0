"""What vLLM calls at the start of each of its processes (entry point group `vllm.general_plugins`).

An exported folder names an architecture that only this plug-in registers: without it, vLLM refuses the folder. With it,
vLLM also refuses a folder that has a rule but a stock name, as transformers alone saves it. Dense models stay as they
are.
"""

from lrsa_lightning.saved_settings import MARK

ARCHITECTURES = ("LrsaQwen2ForCausalLM", "LrsaQwen3ForCausalLM", "LrsaLlamaForCausalLM")


def register() -> None:
    """Tells vLLM which classes run compressed models, and what to check first. It may be called more than once."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class LrsaConfig(VerifyAndUpdateConfig):
        """Refuses, in the front end, what would not be exact."""

        @staticmethod
        def verify_and_update_config(vllm_config) -> None:
            import vllm
            from vllm.platforms import current_platform

            from lrsa_lightning.serving.vllm.settings import check

            check(vllm_config, vllm.__version__, current_platform.device_type)

    class DenseConfig(VerifyAndUpdateConfig):
        """Refuses full attention for a folder that names a rule."""

        @staticmethod
        def verify_and_update_config(vllm_config) -> None:
            from lrsa_lightning.serving.vllm.settings import check_dense

            check_dense(vllm_config)

    for name in ARCHITECTURES:
        ModelRegistry.register_model(name, f"lrsa_lightning.serving.vllm.layers:{name}")
        MODELS_CONFIG_MAP[name] = LrsaConfig
        MODELS_CONFIG_MAP.setdefault(name.removeprefix(MARK), DenseConfig)
