"""TFLite models run by the integer reference: the codes of LiteRT's reference kernels, in NumPy."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence

from edgekit.errors import ModelError
from edgekit.tflite import reference
from edgekit.tflite.interpreter import check_inputs
from edgekit.tflite.model import Array, Operator, TfliteModel
from edgekit.tflite.reference.base import Call, kernel_for
from edgekit.tflite.schema import label


class Reference:
    """A TFLite model, ready to run without LiteRT.

    Args:
        model: The model.

    Raises:
        ModelError: An operator has no kernel.
    """

    def __init__(self, model: TfliteModel) -> None:
        # Each module registers its kernels when it is imported.
        for module in pkgutil.iter_modules(reference.__path__):
            importlib.import_module(f"{reference.__name__}.{module.name}")
        self.model = model
        for operator in model.operators:
            kernel_for(operator.op)

    def run(self, values: Mapping[str, Array], keep: Sequence[str] = ()) -> dict[str, Array]:
        """The outputs by name, as stored: codes, in the file's layout.

        Args:
            values: The inputs by name, of the stored shapes and types.
            keep: Tensors to hand back too, by their names in the model.

        Raises:
            InputError: An input is missing, unknown, or of another shape or type.
            ModelError: A tensor to keep does not exist, or a kernel refuses its operator.
        """
        check_inputs(self.model, values)
        unknown = set(keep) - set(self.model.tensors)
        if unknown:
            raise ModelError(f"the model has no tensors {sorted(unknown)}")
        found = {name: tensor.data for name, tensor in self.model.tensors.items() if tensor.data is not None}
        found |= {tensor: values[name] for name, tensor in self.model.inputs.items()}
        readers = Counter(name for operator in self.model.operators for name in operator.inputs if name)
        readers.update([*self.model.outputs.values(), *keep])
        for operator in self.model.operators:
            found |= zip(operator.outputs, self._compute(operator, found), strict=True)
            for name in operator.inputs:
                if name is not None:
                    readers[name] -= 1
                    if not readers[name]:
                        found.pop(name, None)
        return {name: found[tensor] for name, tensor in self.model.outputs.items()} | {
            name: found[name] for name in keep
        }

    def _compute(self, operator: Operator, found: Mapping[str, Array]) -> list[Array]:
        tensors = self.model.tensors
        outputs = [tensors[name] for name in operator.outputs]
        call = Call(
            operator=operator,
            inputs=[None if name is None else tensors[name] for name in operator.inputs],
            outputs=outputs,
            values=[None if name is None else found[name] for name in operator.inputs],
        )
        results = list(kernel_for(operator.op)(call))
        for result, tensor in zip(results, outputs, strict=True):
            if result.shape != tensor.shape or result.dtype != tensor.dtype.numpy:
                found_as, said = (
                    f"{result.dtype} {list(result.shape)}",
                    f"{tensor.dtype} {list(tensor.shape)}",
                )
                raise ModelError(f"it gives {found_as}, the model says {said}", where=label(operator))
        return results
