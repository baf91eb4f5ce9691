"""FSDP2 shards a flow that fits no device alone, and its loss and gradients stay what they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SIZE = 2


def compare(folder: Path) -> None:
    """What each process does: one step of a full model, and of its share of a sharded one."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    from submanifold.common import distributed
    from submanifold.flows import Glow, RealNVP, initialize
    from submanifold.flows.glow import Level
    from submanifold.losses import penalized_likelihood
    from submanifold.models import Hierarchy, Stage

    class Step(torch.nn.Module):
        """The loss inside the sharded module: its projection decodes with the same weights."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return penalized_likelihood("mse", weight=10.0)(self.model, x)["loss"]

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = Hierarchy([Stage(Glow((3, 8, 8), 2, 2, 8), 24), Stage(RealNVP(24, 2), 6)])
    x = torch.rand(16, 3, 8, 8) - 0.5
    initialize(model, x)
    for p in model.parameters():
        p.data = p.data.contiguous() + 0.05 * torch.randn_like(p)  # away from zero gradients
    loss = Step(model)(x)
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()

    mesh = init_device_mesh("cpu", (SIZE,))
    for level in [each for each in model.modules() if isinstance(each, Level)]:
        fully_shard(level, mesh=mesh)
        register_fsdp_forward_method(level, "inverse")
    step = fully_shard(Step(model), mesh=mesh)
    held = sum(p.to_local().numel() for p in model.parameters())
    mine = step(distributed.shard(x))
    mine.backward()
    shares = [p.grad.full_tensor() for p in model.parameters()]
    mean = mine.detach().clone()
    distributed.average([mean])
    if distributed.rank() == 0:
        found = {
            "loss": [loss.item(), mean.item()],
            "error": max((g - s).abs().max().item() / g.abs().max().item()
                         for g, s in zip(gradients, shares, strict=True)),
            "held": held / sum(g.numel() for g in gradients),
        }  # fmt: skip
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.fault
def test_two_processes_hold_half_a_flow_each_and_find_the_same(tmp_path):
    starter = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={SIZE}"]
    done = subprocess.run([*starter, __file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["loss"][0] == pytest.approx(found["loss"][1], rel=1e-5)
    assert found["error"] < 1e-4
    assert found["held"] == pytest.approx(0.5, abs=0.05)


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare(Path(sys.argv[1]))
