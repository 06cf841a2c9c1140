import torch
from torch import nn

from weights.demo.resuming import keep, resume


def test_a_training_goes_on_from_what_it_kept(tmp_path):
    model, rng = nn.Linear(3, 3), torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    averaged = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    keep(tmp_path / "kept.safetensors", model, optimizer, rng, averaged=averaged, step=7)
    again, other = nn.Linear(3, 3), torch.Generator()
    resumed = torch.optim.AdamW(again.parameters())
    found, step = resume(tmp_path / "kept.safetensors", again, resumed, other)
    assert step == 7
    assert all(torch.equal(found[name], averaged[name]) for name in averaged)
    assert torch.equal(other.get_state(), rng.get_state())
    assert torch.equal(again.weight, model.weight)
    for number, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            assert torch.equal(resumed.state_dict()["state"][number][name], value)
