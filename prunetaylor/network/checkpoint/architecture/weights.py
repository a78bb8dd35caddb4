"""The tensors of a checkpoint are loaded into a network, or an error names those that do not fit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from prunetaylor.core.errors import CheckpointRefused
from prunetaylor.network.checkpoint.read import Checkpoint

_COUNTER = "num_batches_tracked"  # of batch norms; checkpoints from before torch 0.4.1 have none


def load_weights(module: nn.Module, checkpoint: Checkpoint, *, spec: str, head_argument: str | None = None) -> None:
    """Load ``checkpoint.state`` into ``module`` strictly, in the module's own dtypes.

    Names may differ by one leading component that all names of one side share (``model.`` of a training framework, or a
    ``module.`` that was removed); tensors that are tied in the module may be stored once.

    Raises CheckpointRefused, which names the first tensors that are missing, unexpected, or of another shape or kind.
    """
    own = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    state = _with_tied(_renamed(checkpoint.state, own), own)
    wrong = [k for k in state if k in own and not _alike(state[k], own[k], k)]
    if wrong:
        raise _wrong_shapes(wrong, state, own, spec, head_argument)
    try:
        # The module's own loading hooks, which may know older names, have the last word on what is missing.
        result = module.load_state_dict(state, strict=False)
    except Exception as error:
        raise CheckpointRefused(f"{spec} cannot load {checkpoint.path}: {error}", _other(spec)) from error
    missing = [k for k in result.missing_keys if k.rpartition(".")[2] != _COUNTER]
    if missing or result.unexpected_keys:
        raise _wrong_names(checkpoint, missing, list(result.unexpected_keys), spec)


def _renamed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    expected = {k for k in own if not k.endswith(_COUNTER)}
    if {k for k in state if not k.endswith(_COUNTER)} == expected:
        return state
    for longer, shorter in ((state, own), (own, state)):
        heads = {k.partition(".")[0] for k in longer}
        if len(heads) == 1 and all("." in k for k in longer):
            head = f"{heads.pop()}."
            cut = {k.removeprefix(head) for k in longer if not k.endswith(_COUNTER)}
            if cut == {k for k in shorter if not k.endswith(_COUNTER)}:
                return {k.removeprefix(head) if longer is state else head + k: v for k, v in state.items()}
    return state


def _with_tied(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with every missing tensor that shares its storage in the module with one in the state."""
    places = {(own[k].data_ptr(), own[k].shape, own[k].stride()): k for k in state if k in own and own[k].numel()}
    completed = dict(state)
    for name, tensor in own.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if name not in completed and tensor.numel() and place in places:
            completed[name] = state[places[place]]
    return completed


def _alike(given: Tensor, expected: Tensor, name: str) -> bool:
    if given.shape != expected.shape:
        # torch 0.3 and older stored what are scalars now with one element
        return given.numel() == expected.numel() == 1 and given.ndim <= 1 and expected.ndim <= 1
    if name.endswith(_COUNTER):
        return True
    return given.is_floating_point() == expected.is_floating_point() and given.is_complex() == expected.is_complex()


def _wrong_shapes(
    wrong: Sequence[str], state: dict[str, Tensor], own: dict[str, Tensor], spec: str, head_argument: str | None
) -> CheckpointRefused:
    differences = [
        f"{k!r} is {_form(state[k], own[k])} in the file and {_form(own[k], state[k])} in {spec}" for k in wrong[:3]
    ]
    more = f"; {len(wrong) - 3} more" if len(wrong) > 3 else ""
    sizes = {state[k].shape[0] for k in wrong if state[k].ndim and state[k].shape[1:] == own[k].shape[1:]}
    head = len(sizes) == 1 and all(state[k].ndim and state[k].shape[1:] == own[k].shape[1:] for k in wrong)
    layers = {k.rpartition(".")[0] for k in wrong}
    remedy = _other(spec)
    if head and len({own[k].shape[0] for k in wrong}) == 1 and len(layers) <= 2:
        size = sizes.pop()
        argument = f"set model.args.{head_argument}={size}" if head_argument else f"build it with {size} outputs"
        remedy = f"the file's head has {size} outputs: {argument}, or name the right network with --arch"
    return CheckpointRefused(f"tensors do not fit the network: {'; '.join(differences)}{more}", remedy)


def _wrong_names(checkpoint: Checkpoint, missing: list[str], unexpected: list[str], spec: str) -> CheckpointRefused:
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors of {spec} are missing in the file ({_first(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} tensors of the file are not in {spec} ({_first(unexpected)})")
    remedy = _other(spec)
    if any(k.endswith(("_orig", "_mask")) for k in unexpected):
        remedy = "make torch's own pruning permanent before saving: torch.nn.utils.prune.remove(layer, 'weight')"
    return CheckpointRefused(f"{checkpoint.path} does not fit: {'; '.join(parts)}", remedy)


def _other(spec: str) -> str:
    return f"name the network of these weights with --arch (now {spec}), its arguments with model.args.KEY=VALUE"


def _first(names: list[str], most: int = 4) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(n) for n in names[:most]) + more


def _form(tensor: Tensor, other: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "a scalar"
    return shape if tensor.shape != other.shape else f"{shape} {tensor.dtype}".replace("torch.", "")
