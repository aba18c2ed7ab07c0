"""One rank of the check's collectives; prints GB/s of each as JSON."""

import json
import os
import sys
from time import perf_counter

import torch
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
    for name, collective, given, expected in (
        ("all_reduce", _all_reduce, mine, torch.full((count,), ranks * (ranks + 1) / 2)),
        ("all_gather", dist.all_gather_into_tensor, mine, torch.arange(1.0, ranks + 1).repeat_interleave(count)),
        ("reduce_scatter", dist.reduce_scatter_tensor, parts, torch.full((count // ranks,), float(rank * ranks))),
        ("all_to_all", dist.all_to_all_single, parts, torch.full((count,), float(rank))),
    ):
        out = torch.empty_like(expected, device="npu")
        collective(out, given)
        if not torch.equal(out.cpu(), expected):
            sys.exit(f"rank {rank}: {name} is wrong")
        torch.npu.synchronize()
        start = perf_counter()
        for _ in range(5):
            collective(out, given)
        torch.npu.synchronize()
        bandwidth[f"{name}_gb_per_second"] = round(5 * count * 4 / (perf_counter() - start) / 1e9, 3)
    dist.destroy_process_group()
    print(json.dumps(bandwidth))


def _all_reduce(out, given) -> None:
    dist.all_reduce(out.copy_(given))


if __name__ == "__main__":
    main()
