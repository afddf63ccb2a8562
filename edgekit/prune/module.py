"""Carrying a pruning plan out on the user's own ``nn.Module``, so that they can go on with their own
training.

The exporter keeps torch's names, so most of it goes by name. Two things need more:

1. Capture folds batch normalizations into the layers before them. A plan made on such a graph does not
   speak of them; which one follows which layer is read from a ``torch.fx`` trace of the module.
2. Capture may store a weight transposed (``Linear`` on more than two axes). The plan says so.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgekit.errors import ModelError
from edgekit.prune.plan import PruningPlan, TensorKeep

if TYPE_CHECKING:
    import torch
    from torch import nn

Kept = dict[int, list[int]]

_FOLD_HINT = "Capture with fold=False and make the plan on that graph"


def apply_plan(module: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of a module without what the plan removes.

    Weights, buffers and the sizes that torch's own layers keep beside them (channels, features, groups)
    change. Sizes written out in a ``forward`` (``view``, ``split``) are the caller's.

    Args:
        module: The module that the graph was captured from, or one with the same parameters.
        plan: The plan, made on the captured graph.

    Raises:
        ModelError: A tensor of the plan has no counterpart in the module, which the message names; the plan
            leaves out blocks; or a layer cannot be made smaller.
    """
    if plan.dropped:
        raise ModelError("the plan leaves out blocks, which changes the module's forward", where="apply_plan")
    result = copy.deepcopy(module)
    tensors = _Tensors(result)
    _refuse_attention(result, plan)
    unknown = []
    cut: dict[str, Kept] = {}
    for name, keep in plan.tensors.items():
        kept = tensors.kept(name, keep)
        if kept is None:
            unknown.append(name)
        else:
            cut[name] = kept
    layers = _Layers(result, cut)
    folded = layers.folded()
    missing = [
        name for name in unknown if name.removesuffix(".bias") not in folded or not name.endswith(".bias")
    ]
    if missing:
        listed = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise ModelError(
            f"has no counterpart of {len(missing)} tensors of the plan: {listed}", where="the module"
        )
    for name, kept in {**cut, **layers.followers()}.items():
        tensors.cut(name, kept)
    for child in result.modules():
        _resize(child)
    return result


class _Tensors:
    """The parameters and buffers of a module by name; one that several names share is cut once."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.found: dict[str, torch.Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }

    def kept(self, name: str, keep: TensorKeep) -> Kept | None:
        """Indices to keep by axis of the module's tensor; None without a tensor of that name and layout."""
        tensor = self.found.get(name)
        if tensor is None:
            return None
        places = _places(list(tensor.shape), keep)
        if places is None:
            return None
        return {places[axis]: indices for axis, indices in keep.keep.items()}

    def cut(self, name: str, kept: Kept) -> None:
        import torch

        tensor = self.found[name]
        smaller = tensor.detach()
        for axis, indices in kept.items():
            smaller = smaller.index_select(axis, torch.tensor(indices, device=tensor.device))
        parameter = torch.nn.Parameter(smaller, tensor.requires_grad)
        for other, shared in list(self.found.items()):
            if shared is tensor:
                owner, _, leaf = other.rpartition(".")
                holder = self.module.get_submodule(owner)
                if leaf in holder._parameters:
                    holder._parameters[leaf] = parameter
                else:
                    holder._buffers[leaf] = smaller


def _places(shape: Sequence[int], keep: TensorKeep) -> dict[int, int] | None:
    """For each axis of the plan's tensor the axis of the module's; None where they do not correspond."""
    axes: list[int] | None = list(range(len(shape)))
    for step in filter(None, keep.rearranged.split("+")):
        if axes is None or not step.startswith("Transpose"):
            axes = None  # only sizes of one can have come or gone; checked below
            continue
        order = [int(number) for number in re.findall(r"\d+", step)] or list(range(len(axes)))[::-1]
        axes = [axes[axis] for axis in order]
    if axes is None or len(axes) != len(keep.shape):
        wide = [axis for axis, size in enumerate(keep.shape) if size != 1]
        source = [axis for axis, size in enumerate(shape) if size != 1]
        if "Transpose" in keep.rearranged or [keep.shape[a] for a in wide] != [shape[a] for a in source]:
            return None
        return dict(zip(wide, source, strict=True))
    places = dict(enumerate(axes))
    # Kernels may differ (capture merges slices of the image into the first one), axes that are cut may not.
    return places if all(shape[places[axis]] == keep.shape[axis] for axis in keep.keep) else None


class _Layers:
    """What follows a layer's cut output: its bias and the batch normalization that capture folded."""

    def __init__(self, module: nn.Module, cut: Mapping[str, Kept]) -> None:
        self.module = module
        self.cut = cut
        self.outputs = {
            name: kept
            for name, layer in module.named_modules()
            if (kept := _output(name, layer, cut)) is not None
        }
        self.pairs = self._pairs()

    def folded(self) -> set[str]:
        """Layers that a batch normalization was folded into."""
        return set(self.pairs.values())

    def followers(self) -> dict[str, Kept]:
        """Tensors that the plan does not name, with what stays of them."""
        found: dict[str, Kept] = {}
        for name, kept in self.outputs.items():
            bias = f"{name}.bias"
            if getattr(self.module.get_submodule(name), "bias", None) is not None and bias not in self.cut:
                found[bias] = {0: kept}
        for norm, layer in self.pairs.items():
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                if getattr(self.module.get_submodule(norm), leaf) is not None:
                    found[f"{norm}.{leaf}"] = {0: self.outputs[layer]}
        return found

    def _pairs(self) -> dict[str, str]:
        """Batch normalizations that the plan does not name, with the layers before them that are cut."""
        from torch import fx, nn

        modules = dict(self.module.named_modules())
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        silent = {
            name
            for name, layer in modules.items()
            if isinstance(layer, kinds)
            and not any(f"{name}.{leaf}" in self.cut for leaf in ("weight", "running_mean"))
        }
        if not silent or not self.outputs:
            return {}
        try:
            graph = fx.Tracer().trace(self.module)
        except Exception as error:  # the module's own forward runs here and may raise anything
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(
                "torch.fx cannot follow its forward, so it is unknown which layer each folded batch "
                f"normalization belongs to ({reason})",
                where="the module",
                hint=_FOLD_HINT,
            ) from error
        pairs = {}
        for node in graph.nodes:
            source = node.args[0] if node.op == "call_module" and node.args else None
            if (
                str(node.target) not in silent
                or not isinstance(source, fx.Node)
                or source.op != "call_module"
            ):
                continue
            if str(source.target) in self.outputs:
                pairs[str(node.target)] = str(source.target)
        return pairs


def _output(name: str, layer: nn.Module, cut: Mapping[str, Kept]) -> list[int] | None:
    """Output channels that stay of a layer that loses some."""
    from torch import nn

    kept = cut.get(f"{name}.weight", {})
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        per_group = layer.out_channels // layer.groups
        if _by_group(layer):
            if 0 not in kept:
                return None
            groups = sorted({i // (layer.in_channels // layer.groups) for i in kept[0]})
            return [group * per_group + offset for group in groups for offset in range(per_group)]
        if 1 not in kept:
            return None
        return [group * per_group + offset for group in range(layer.groups) for offset in kept[1]]
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
        return kept.get(0)
    return None


def _by_group(layer: nn.modules.conv._ConvNd) -> bool:
    """Whether whole groups go (depthwise), as :mod:`edgekit.prune.rules_linear` has it."""
    return layer.groups > 1 and layer.groups in (layer.in_channels, layer.out_channels)


def _resize(layer: nn.Module) -> None:
    """Bring the sizes that a layer keeps beside its tensors in line with them."""
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.conv import _ConvNd

    if isinstance(layer, _ConvNd):
        _resize_conv(layer)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _NormBase):
        held = layer.weight if layer.weight is not None else layer.running_mean
        if held is not None:
            layer.num_features = len(held)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)
    elif (
        isinstance(layer, nn.GroupNorm)
        and layer.weight is not None
        and len(layer.weight) != layer.num_channels
    ):
        layer.num_groups = layer.num_groups * len(layer.weight) // layer.num_channels
        layer.num_channels = len(layer.weight)
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape


def _resize_conv(layer: nn.modules.conv._ConvNd) -> None:
    first, second = layer.weight.shape[:2]
    by_group = _by_group(layer)
    if layer.transposed:
        groups = first * layer.groups // layer.in_channels if by_group else layer.groups
        layer.in_channels, layer.out_channels = first, second * groups
    else:
        groups = first * layer.groups // layer.out_channels if by_group else layer.groups
        layer.in_channels, layer.out_channels = second * groups, first
    layer.groups = groups


def _refuse_attention(module: nn.Module, plan: PruningPlan) -> None:
    from torch import nn

    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(layer, nn.MultiheadAttention) and f"{prefix}in_proj_weight" in plan.tensors:
            raise ModelError(
                "torch's MultiheadAttention cannot have fewer heads", where=f"module '{name}'",
                hint="Leave its groups whole, or go on with the pruned graph",
            )  # fmt: skip
