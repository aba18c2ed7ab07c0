"""vLLM's attention back ends with compression, each in a file of its own that imports the stock one."""

from vllm.utils.import_utils import resolve_obj_by_qualname

from lrsa_lightning.errors import InputError

BACKENDS = {
    "CPU_ATTN": "lrsa_lightning.serving.vllm.backends.cpu.LagCPUBackend",
    "FLASH_ATTN": "lrsa_lightning.serving.vllm.backends.flash.LagFlashBackend",
    "TRITON_ATTN": "lrsa_lightning.serving.vllm.backends.triton.LagTritonBackend",
}


def compressed(stock: type) -> type:
    """The back end that does what a stock one does, over a compressed cache.

    Raises:
        InputError: there is none.
    """
    if stock.get_name() not in BACKENDS:
        way_out = "take --attention-backend FLASH_ATTN or TRITON_ATTN"
        raise InputError(f"LRSA: vLLM's attention back end {stock.get_name()} has no compression; {way_out}")
    return resolve_obj_by_qualname(BACKENDS[stock.get_name()])
