"""One rank of the check's collectives; prints GB/s of each as JSON."""

import json
import os
import sys
from time import perf_counter

import torch
from torch import Tensor
from torch import distributed as dist

from lrsa_lightning.npu.environment import require_npu


def main() -> None:
    """Takes the megabytes of the tensors as argument. Exits with status 1 if a value is wrong."""
    require_npu()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=ranks)
    count = int(sys.argv[1]) * 2**20 // 4 // ranks * ranks
    mine = torch.full((count,), float(rank + 1), device="npu")
    parts = torch.arange(ranks, device="npu").repeat_interleave(count // ranks).float()
    bandwidth = {}
    for name, function, expected in (
        ("all_reduce", _all_reduce, torch.full((count,), ranks * (ranks + 1) / 2)),
        ("all_gather", _all_gather, torch.arange(1.0, ranks + 1).repeat_interleave(count)),
        ("reduce_scatter", _reduce_scatter, torch.full((count // ranks,), float(rank * ranks))),
        ("all_to_all", _all_to_all, torch.full((count,), float(rank))),
    ):
        given = parts if name in ("reduce_scatter", "all_to_all") else mine
        if not torch.equal(function(given.clone(), ranks).cpu(), expected):
            sys.exit(f"rank {rank}: {name} is wrong")
        torch.npu.synchronize()
        start = perf_counter()
        for _ in range(5):
            function(given.clone(), ranks)
        torch.npu.synchronize()
        bandwidth[f"{name}_gb_per_second"] = round(5 * count * 4 / (perf_counter() - start) / 1e9, 3)
    dist.destroy_process_group()
    print(json.dumps(bandwidth))


def _all_reduce(given: Tensor, ranks: int) -> Tensor:
    dist.all_reduce(given)
    return given


def _all_gather(given: Tensor, ranks: int) -> Tensor:
    everything = given.new_empty(ranks * given.numel())
    dist.all_gather_into_tensor(everything, given)
    return everything


def _reduce_scatter(given: Tensor, ranks: int) -> Tensor:
    part = given.new_empty(given.numel() // ranks)
    dist.reduce_scatter_tensor(part, given)
    return part


def _all_to_all(given: Tensor, ranks: int) -> Tensor:
    received = torch.empty_like(given)
    dist.all_to_all_single(received, given)
    return received


if __name__ == "__main__":
    main()
