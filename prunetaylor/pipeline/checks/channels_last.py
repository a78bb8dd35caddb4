"""In which order a network's weights lie in memory: as its passes are fastest, where the network bears that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from prunetaylor.core.progress import Detail
from prunetaylor.network.state import channels_last, copied
from prunetaylor.pipeline.job import Job
from prunetaylor.taylor.passes import compute_outputs, differentiate_outputs, first_batch

_APART = 0.05
"""Of the outputs' norm: rounding in half precision moves them by less, values read in another order by far more."""


@contextmanager
def use_memory_format(job: Job, *modules: nn.Module) -> Iterator[list[str]]:
    """Inside, the convolutions' weights of ``modules``, copies of one network, lie with channels last.

    Convolutions are fastest so, forward and backward, on a CPU and on a GPU. Their outputs then lie so too, and a
    network may well not bear that: it reads them with ``view``. Then all stays plain, and what is given says why.
    """
    reason = _reason(job, modules[0])
    with ExitStack() as stack:
        if reason is None:
            for module in modules:
                stack.enter_context(channels_last(module))
        yield [Detail(f"memory layout: plain (with channels last, which is faster, {reason})")] if reason else []


def _reason(job: Job, module: nn.Module) -> str | None:
    """As :func:`trial`, on test samples; empty too where nothing is to be gained."""
    if job.samples is None or job.device.type not in ("cpu", "cuda") or all(p.dim() != 4 for p in module.parameters()):
        return ""
    test = job.samples.test
    x, _ = first_batch(job.batches(test.subset(range(min(2, len(test)))), workers=0))
    return trial(module, x)


def trial(module: nn.Module, x: Tensor) -> str | None:
    """Why ``module`` cannot lie with channels last; None where it can, empty where it cannot run at all.

    A copy goes through all kinds of passes over ``x`` that a run may take, in both layouts: with gradients in
    evaluation mode, where the outputs must be the same, with forward-mode derivatives, and with gradients in training
    mode, as there may be branches for that alone. What fails in either layout is not the layout's fault.
    """
    copy, last = copied(module), x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    for parameter in copy.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        wanted = _tried(_with_gradients, copy.eval(), x)
        if isinstance(wanted, Exception):
            return ""  # for whoever needs its outputs to say
        with channels_last(copy):
            for inputs in (x, last):
                found = _tried(_with_gradients, copy, inputs)
                if isinstance(found, Exception):
                    return _failed(found)
                if found.shape != wanted.shape or not _close(found, wanted):
                    return "the network puts out something else"
        for passed, training in ((_with_derivatives, False), (_with_gradients, True)):
            with channels_last(copy):
                found = _tried(passed, copy.train(training), last)
            if isinstance(found, Exception) and isinstance(_tried(passed, copy, x), Tensor):
                return _failed(found)
    return None


Pass = Callable[[nn.Module, Tensor], Tensor]


def _tried(passed: Pass, module: nn.Module, x: Tensor) -> Tensor | Exception:
    """The outputs, or what it failed with: the network's code may raise anything."""
    try:
        return passed(module, x)
    except Exception as error:
        return error


def _with_gradients(module: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        outputs = compute_outputs(module, x).float()
        if outputs.requires_grad:
            weights = [p for p in module.parameters() if p.requires_grad]
            torch.autograd.grad(outputs.sum(), weights, allow_unused=True)
    return outputs.detach()


def _with_derivatives(module: nn.Module, x: Tensor) -> Tensor:
    """Along the weights themselves."""
    weights = {name: p.detach() for name, p in module.named_parameters() if p.is_floating_point()}
    return differentiate_outputs(module, x, weights, weights)[0]


def _close(found: Tensor, wanted: Tensor) -> bool:
    same = torch.isfinite(found) == torch.isfinite(wanted)
    found, wanted = found.nan_to_num(0, 0, 0), wanted.nan_to_num(0, 0, 0)
    return bool(same.all()) and float((found - wanted).norm()) <= _APART * float(wanted.norm())


def _failed(error: Exception) -> str:
    """In one line."""
    return f"the network fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
