"""Which of our back ends stands for a stock one."""

from importlib import import_module

from lrsa_lightning.errors import InputError

BACKENDS = {
    "CPU_ATTN": "cpu.LagCPUBackend",
    "FLASH_ATTN": "flash.LagFlashBackend",
    "TRITON_ATTN": "triton.LagTritonBackend",
}


def compressed(stock: type) -> type:
    """The back end that does what a stock one does, over a compressed cache.

    Args:
        stock: a subclass of vLLM's AttentionBackend.

    Raises:
        InputError: there is none.
    """
    if stock.get_name() not in BACKENDS:
        way_out = "take --attention-backend FLASH_ATTN or TRITON_ATTN"
        raise InputError(f"LRSA: vLLM's attention back end {stock.get_name()} has no compression; {way_out}")
    module, name = BACKENDS[stock.get_name()].split(".")
    return getattr(import_module(f"lrsa_lightning.serving.vllm.backends.{module}"), name)
