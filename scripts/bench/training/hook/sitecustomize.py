"""Put on PYTHONPATH by scripts/bench/train: whoever trains with torch tells what CPU time its optimizer's steps were done at.

Nothing is imported early: it waits for the contender to import torch.optim. CPU time is that of the process and of all its
parents up to the benchmark, so that a launcher's share counts. One line a step costs 0.1 ms.
"""

import importlib.abc
import importlib.util
import os
import sys

FILE, TOP = os.environ.get("BENCH_STEPS"), int(os.environ.get("BENCH_PID", "0"))
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """User and system time of this process, its waited-for children, and its parents."""
    total, pid = 0, os.getpid()
    while pid > 1 and pid != TOP:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total, pid = total + sum(int(n) for n in fields[11:15]), int(fields[1])
    return total / TICK


def stepped(optimizer, args, kwargs) -> None:
    with open(FILE, "a") as file:
        file.write(f"{cpu_seconds():.2f}\n")


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.optim.optimizer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.register_optimizer_step_post_hook(stepped)

        spec.loader.exec_module = exec_module
        return spec


if FILE:
    sys.meta_path.insert(0, Finder())
