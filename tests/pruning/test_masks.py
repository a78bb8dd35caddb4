"""Zeros stay zero in anybody's training loop, for every optimizer that torch has."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import prunetaylor
from prunetaylor.core.errors import NumericsError, UsageError
from prunetaylor.pruning.masks import apply_masks, check_masks, keep_masks, masks_of


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def some_masks(module: nn.Module, share: float = 0.7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(parameter.shape, generator=generator) > share
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1
    }


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(8, 2, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def train_steps(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x, y = data()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum-decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_zeros_stay_zero(make):
    """Momentum from before the pruning included: without the handle this very loop revives weights."""

    def run(*, keep: bool) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Tensor], dict[str, Tensor]]:
        module = network()
        optimizer = make(module.parameters())
        train_steps(module, optimizer, 3)  # momentum is under way
        masks = some_masks(module)
        apply_masks(module, masks)
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        if keep:
            keep_masks(module, optimizer)
        train_steps(module, optimizer, 3)
        return module, optimizer, masks, before

    module, optimizer, masks, before = run(keep=True)
    check_masks(module, masks)
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        assert bool(torch.isfinite(parameter).all())
        if not name.startswith("0.bias"):  # a bias before batch norm has no gradient
            moved = parameter != before[name]
            assert bool(moved[masks[name]].any() if name in masks else moved.any()), f"{name} did not train"
    for name, mask in masks.items():
        for key, value in optimizer.state.get(parameters[name], {}).items():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                assert not bool(value[~mask].any()), f"{key} of {name} holds values of dead weights"

    module, _, masks, _ = run(keep=False)
    with pytest.raises(NumericsError, match=r"0\.weight \(\d+\)"):
        check_masks(module, masks)


def test_several_parameter_groups_and_one_added_later():
    module = network()
    masks = some_masks(module)
    apply_masks(module, masks)
    optimizer = torch.optim.SGD([{"params": module[4].parameters(), "lr": 1.0}], lr=0.1, momentum=0.9)
    keep_masks(module, optimizer)
    optimizer.add_param_group({"params": [*module[0].parameters(), *module[1].parameters()], "weight_decay": 0.5})
    train_steps(module, optimizer, 3)
    check_masks(module, masks)


def test_live_weights_train_as_if_the_dead_were_not_there():
    """The same steps as a loop that multiplies weights by their mask inside the network."""
    module, reference = nn.Linear(6, 4), nn.Linear(6, 4)
    mask = some_masks(module)["weight"]
    reference.load_state_dict(module.state_dict())
    x, y = torch.randn(9, 6), torch.randn(9, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    other = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    keep_masks(module, optimizer, {"weight": mask})
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(x), y).backward()
        optimizer.step()
        other.zero_grad()
        nn.functional.mse_loss(nn.functional.linear(x, reference.weight * mask, reference.bias), y).backward()
        other.step()
    torch.testing.assert_close(module.weight, reference.weight * mask)


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("name", ["sgd-momentum-decay", "adamw", "adamw-fused"])
def test_steps_that_a_gradient_scaler_takes_and_skips(name, overflow):
    module = network()
    masks = some_masks(module)
    optimizer = OPTIMIZERS[name](module.parameters())
    keep_masks(module, optimizer, masks)
    before = module[4].weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = data()
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(module(x), y)).backward()
        if overflow:
            module[0].weight.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    check_masks(module, masks)
    assert torch.equal(module[4].weight, before) == overflow
    assert (scaler.get_scale() < 2.0**10) == overflow


def test_masks_are_applied_at_once_and_let_go_by_remove():
    module = network()
    masks = some_masks(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with keep_masks(module, optimizer, masks):
        check_masks(module, masks)
        train_steps(module, optimizer, 1)
        check_masks(module, masks)
    assert not optimizer._optimizer_step_post_hooks
    train_steps(module, optimizer, 1)
    with pytest.raises(NumericsError, match=r"0\.weight"):
        check_masks(module, masks)


def test_an_exception_in_the_loop_lets_go_too():
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), keep_masks(module, optimizer, some_masks(module)):
        raise KeyboardInterrupt
    assert not optimizer._optimizer_step_post_hooks


def test_the_public_name_keeps_what_is_zero_now():
    module = network()
    with torch.no_grad():
        module[4].weight[0] = 0
        module[1].bias.zero_()  # a norm's zeros are values, not holes
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    prunetaylor.keep_masks(module, optimizer)
    train_steps(module, optimizer, 2)
    assert not bool(module[4].weight[0].any())
    assert bool(module[1].bias.all())


def test_a_network_that_changes_its_type_afterwards():
    module = network()
    masks = some_masks(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    keep_masks(module, optimizer, masks)
    module.double()
    x, y = data()
    nn.functional.cross_entropy(module(x.double()), y).backward()
    optimizer.step()
    check_masks(module, masks)


def test_wrapped_and_tied_networks():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    with torch.no_grad():
        module[0].weight[:2] = 0
    wrapped = nn.DataParallel(module)
    assert list(masks_of(wrapped)) == ["module.0.weight"]
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1)
    keep_masks(wrapped, optimizer)
    wrapped(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert not bool(module[2].weight[:2].any())
    # both names of a tied tensor are understood
    check_masks(module, {"2.weight": module[0].weight != 0})


def test_masks_of_lists_prunable_weights_only():
    module = network()
    with torch.no_grad():
        module[0].weight[0] = 0
    found = masks_of(module)
    assert list(found) == ["0.weight", "4.weight"]
    assert int((~found["0.weight"]).sum()) == 18
    assert bool(found["4.weight"].all())


def test_applying_removes_any_value_and_keeps_the_rest():
    module = nn.Linear(3, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, torch.nan, torch.inf]]))
    apply_masks(module, {"weight": torch.tensor([[True, False, False]])})
    assert module.weight.tolist() == [[1.0, 0.0, 0.0]]
    assert module.weight.requires_grad


def test_applying_leaves_the_bits_of_what_is_zero_already():
    """A training under masks leaves negative zeros; what is resumed from them must be the same to the bit."""
    module = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[-0.0, 0.0, -1.0, float("nan")]]))
    apply_masks(module, {"weight": torch.zeros(1, 4, dtype=torch.bool)})
    assert torch.signbit(module.weight).tolist() == [[True, False, False, False]]
    assert module.weight.count_nonzero() == 0


def test_a_nan_in_a_removed_weight_is_not_zero():
    module = nn.Linear(2, 1)
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    with pytest.raises(NumericsError, match=r"weight \(1\)"):
        check_masks(module, {"weight": torch.tensor([[False, True]])})


def test_what_does_not_fit_is_refused():
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="nothing to keep"):
        keep_masks(module, optimizer)
    with pytest.raises(UsageError, match=r"does not have; did you mean '0.weight'"):
        keep_masks(module, optimizer, {"0.weigt": torch.ones(4, 2, 3, 3, dtype=torch.bool)})
    with pytest.raises(UsageError, match=r"its weight has shape \(3, 16\)"):
        keep_masks(module, optimizer, {"4.weight": torch.ones(3, 15, dtype=torch.bool)})
    with pytest.raises(UsageError, match="boolean"):
        keep_masks(module, optimizer, {"4.weight": torch.ones(3, 16)})
    assert not optimizer._optimizer_step_post_hooks


def test_an_optimizer_of_another_network_is_refused():
    module, other = network(), network()
    with pytest.raises(UsageError, match="2 masked weights"):
        keep_masks(module, torch.optim.SGD(other.parameters(), lr=0.1), some_masks(module))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["sgd-fused", "adamw-fused", "sgd-foreach", "adam-amsgrad"])
def test_on_a_gpu_without_waiting_for_it(name):
    module = network().cuda().to(memory_format=torch.channels_last)
    masks = some_masks(module)  # on the CPU
    optimizer = OPTIMIZERS[name](module.parameters())
    keep_masks(module, optimizer, masks)
    x, y = (t.cuda() for t in data())
    nn.functional.cross_entropy(module(x), y).backward()
    optimizer.step()
    with warnings.catch_warnings(action="ignore"):  # that the debug mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    check_masks(module, masks)
