"""One parameter's numbers, wherever they are and however they are stored: what scores read and perturbations write."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from esa.model.anatomy import ParameterInfo

_HASHED = 1 << 26  # numbers whose bytes are hashed at once


class Weight:
    """A parameter in memory, stored as floating-point numbers.

    ``info``: its description; ``dtype``: of the numbers that its bits live in, which the dtype in memory holds exactly.
    The module is asked for the parameter each time: it is another tensor after a block has left and come back.
    """

    def __init__(self, model: nn.Module, info: ParameterInfo, dtype: torch.dtype) -> None:
        self.info, self.dtype = info, dtype
        self._module = model.get_submodule(info.layer)
        self._attribute = info.name.rpartition(".")[2]

    @property
    def parameter(self) -> nn.Parameter:
        """Return the parameter as the module holds it."""
        found: nn.Parameter = getattr(self._module, self._attribute)
        return found

    def values(self) -> Tensor:
        """Return its numbers, detached: floating-point, of the shape ``info.shape``. Not to be written to."""
        return self.parameter.detach()

    def source(self) -> Tensor:
        """Return the leaf, of the shape ``info.shape``, by which the loss is differentiated."""
        return self.parameter

    @property
    def requires_grad(self) -> bool:
        """Tell whether the loss is differentiated by it."""
        return self.parameter.requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        """Say whether the loss is to be differentiated by it."""
        self.parameter.requires_grad_(wanted)

    def stored(self, index: Tensor) -> Tensor:
        """Return the stored numbers at row-major indices ``(n,)``, in ``dtype``."""
        return self.held(index).to(self.dtype)

    def held(self, index: Tensor) -> Tensor:
        """Return the numbers in memory at row-major indices ``(n,)``, a copy: what ``restore`` takes to bring them back."""
        values = self.values()
        picked: Tensor = values[torch.unravel_index(index.to(values.device), values.shape)]
        return picked.clone()

    def write(self, index: Tensor, values: Tensor) -> None:
        """Replace the numbers at row-major indices ``(n,)``; the others keep their bits."""
        parameter = self.parameter
        with torch.no_grad():
            place = torch.unravel_index(index.to(parameter.device), parameter.shape)
            parameter[place] = values.to(parameter)

    def restore(self, index: Tensor, held: Tensor) -> None:
        """Bring back what ``held`` returned, bit for bit."""
        self.write(index, held)

    def pieces(self) -> Iterator[Tensor]:
        """Yield the numbers in memory, flat, a piece at a time: what the fingerprint reads."""
        yield from flat_pieces(self.values())


def flat_pieces(values: Tensor) -> Iterator[Tensor]:
    """Yield a tensor's numbers, flat, as many at a time as are hashed at once."""
    flat = values.detach().contiguous().view(-1)
    for start in range(0, len(flat), _HASHED):
        yield flat[start : start + _HASHED]


def weights_of(
    model: nn.Module, table: Mapping[str, ParameterInfo], dtypes: Mapping[str, torch.dtype] | None = None
) -> dict[str, Weight]:
    """Return the weights of a model in memory that ``table`` describes; ``dtypes``: of storage, where memory has wider ones."""
    parameters = dict(model.named_parameters())
    return {name: Weight(model, info, (dtypes or {}).get(name, parameters[name].dtype)) for name, info in table.items()}


def fingerprint(weights: Mapping[str, Weight], names: set[str] | None = None) -> str:
    """Return the sha256 over name, dtype, shape and bytes of every parameter (or of ``names``), in order.

    Cost: one read of the weights, about a second per 1.5 GB.
    """
    digest = hashlib.sha256()
    for name, weight in weights.items():
        if names is None or name in names:
            for number, piece in enumerate(weight.pieces()):
                if number == 0:
                    digest.update(f"{name}|{piece.dtype}|{weight.info.shape}|".encode())
                digest.update(piece.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
