"""One engine of vLLM under the load. Only this module of the bench imports vLLM."""

import asyncio
from statistics import median
from time import perf_counter
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from lrsa_lightning.serving.bench.load import Load
from lrsa_lightning.serving.bench.others import OthersCPU

_STOP_S = 10


class Watch(StatLoggerBase):
    """Counts an engine's requests at each of its steps.

    Attributes:
        preemptions: so far.
        running_before: the most requests at once before the first preemption.
        most_running: the most at once, at any time.
        peak_usage: the largest used part of the cache.
    """

    def __init__(self, vllm_config=None, engine_index: int = 0):
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.preemptions = self.running_before = self.most_running = 0
        self.peak_usage = 0.0

    def record(self, scheduler_stats, iteration_stats, *_, **__) -> None:
        """See the base class."""
        if iteration_stats is not None:
            self.preemptions += iteration_stats.num_preempted_reqs
        if scheduler_stats is not None:
            self.most_running = max(self.most_running, scheduler_stats.num_running_reqs)
            self.peak_usage = max(self.peak_usage, scheduler_stats.kv_cache_usage)
            if not self.preemptions:
                self.running_before = self.most_running

    def log_engine_initialized(self) -> None:
        """See the base class."""


class MeasuredEngine:
    """An engine in a process of its own, which waits while others have their turn."""

    def __init__(self, name: str, arguments: dict[str, Any]):
        self.name, self._watch, self._asked = name, Watch(), 0
        arguments = AsyncEngineArgs(**arguments, enable_log_requests=False, disable_log_stats=True)
        self._engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[lambda *_: self._watch])

    @property
    def machine(self) -> dict[str, Any]:
        """The device and the dtype that the engine runs on."""
        from vllm.platforms import current_platform

        config = self._engine.vllm_config
        return {
            "device": current_platform.get_device_name(),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "block_size": config.cache_config.block_size,
        }

    def stop(self) -> None:
        """Ends the engine's process."""
        self._engine.shutdown(timeout=_STOP_S)

    async def alone(self, load: Load, part: str) -> dict[str, float]:
        """One request, with nothing beside it: seconds to its first token, and milliseconds a token after it."""
        with OthersCPU() as others:
            first, ms = await self._ask(load.prompts(self._vocab_size, part)[0], load.new_tokens)
        return {"first_token_s": first, "ms_a_token": ms, "others_cpu": others.fraction}

    async def together(self, load: Load, part: str) -> dict[str, float]:
        """All requests at once."""
        prompts = load.prompts(self._vocab_size, part)
        self._watch.reset()
        with OthersCPU() as others:
            start = perf_counter()
            times = await asyncio.gather(*(self._ask(prompt, load.new_tokens) for prompt in prompts))
            seconds = perf_counter() - start
        first, ms = (median(values) for values in zip(*times, strict=True))
        return {
            "requests_a_second": load.requests / seconds,
            "first_token_s": first,
            "ms_a_token": ms,
            "running_before_preemption": self._watch.running_before,
            "most_running": self._watch.most_running,
            "preemptions": self._watch.preemptions,
            "peak_cache_usage": self._watch.peak_usage,
            "others_cpu": others.fraction,
        }

    @property
    def _vocab_size(self) -> int:
        return self._engine.model_config.get_vocab_size()

    async def _ask(self, prompt: list[int], new_tokens: int) -> tuple[float, float]:
        self._asked += 1
        options = SamplingParams(
            temperature=0.0,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        start, marks = perf_counter(), []
        async for _ in self._engine.generate({"prompt_token_ids": prompt}, options, f"{self.name}-{self._asked}"):
            marks.append(perf_counter())
        return marks[0] - start, 1000 * (marks[-1] - marks[0]) / max(1, new_tokens - 1)
