"""A gradient of which only the coefficients on the kept columns are there, in the place of the whole one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

aten: Any = torch.ops.aten


class Projects(Protocol):
    """Projects gradients of one parameter."""

    @property
    def step(self) -> int:
        """The step that the columns are of."""

    def __call__(self, gradient: Tensor) -> Sequence[Tensor]:
        """Return the coefficients of each stack of matrices."""


class ProjectedGradient(Tensor):
    """What ``.grad`` is while a gradient is kept as coefficients: of the parameter's shape, in their memory.

    Whoever looks at ``.grad`` between backward and the step finds it there. Adding a gradient projects that one too;
    scaling, setting to zero and asking for numbers that are not finite is done on the coefficients. The Euclidean norm
    is that of the whole gradient, known as long as one gradient has been added. What needs the numbers themselves is an
    error: they are gone.

    Parameters
    ----------
    parameter
        Whose gradient it is.
    parts
        Coefficients of each stack of its matrices.
    norm
        Norm of the whole gradient, a 0-d tensor.
    project
        Projects further gradients.
    name
        The parameter's name, for messages.
    """

    # Nothing here refers to the parameter: it refers to this in a way that Python's garbage collector does not see.
    _flat: Tensor
    _shapes: Sequence[torch.Size]
    _norm: Tensor | None
    _is_zero: bool
    _project: Projects
    _step: int
    _name: str

    @staticmethod
    def __new__(
        cls,
        parameter: Tensor,
        parts: Sequence[Tensor],
        norm: Tensor,
        project: Projects,
        name: str,
    ) -> ProjectedGradient:
        """Return a gradient without numbers of its own."""
        own = _empty_like(parameter)
        own._shapes = [part.shape for part in parts]
        own._flat, own._norm, own._is_zero = _flat(parts), norm, False
        own._project, own._step, own._name = project, project.step, name
        return own

    @property
    def parts(self) -> list[Tensor]:
        """The coefficients of each stack of matrices, views of what is kept.

        Raises
        ------
        ValueError
            If there has been a step on them: the columns may be others now.
        """
        if self._project.step != self._step:
            raise ValueError(
                f"the gradient of {self._name} must be forgotten after a step, by zero_grad, before further steps and "
                "gradients: it is kept as coefficients on columns that may have changed"
            )
        pieces = torch.split(self._flat, [shape.numel() for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer what PyTorch would take apart into operations on numbers; let everything else be dispatched."""
        if func in _ASKS and isinstance(args[0], ProjectedGradient):
            asks, all_or_any = _ASKS[func]
            # A coefficient depends on a whole row: that one is not finite says nothing of single numbers.
            return all_or_any(asks(args[0]._flat)).expand(args[0].shape)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operation on the coefficients, or raise ``NotImplementedError`` where it needs the whole gradient."""
        options = dict(kwargs or {})
        if func in _OPERATIONS:
            result = _OPERATIONS[func](func, *args, **options)
            if result is not NotImplemented:
                return result
        raise NotImplementedError(_message(func, args))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return the shape and what is kept; the numbers are not there to be shown."""
        return f"ProjectedGradient({self._name}, shape={tuple(self.shape)}, {self._flat.numel()} coefficients)"

    def __deepcopy__(self, memo: Any) -> ProjectedGradient:
        """Return a gradient of the same parameter with coefficients of its own."""
        copied: ProjectedGradient = self.clone()  # type: ignore[assignment]
        return copied

    def _with(self, flat: Tensor, norm: Tensor | None) -> ProjectedGradient:
        """Return a gradient of the same parameter with other coefficients."""
        own = _empty_like(self)
        own._flat, own._norm, own._is_zero = flat, norm, self._is_zero
        own._shapes, own._project = self._shapes, self._project
        own._step, own._name = self._step, self._name
        return own


def keep(parameter: Tensor, project: Projects, name: str) -> None:
    """Put the coefficients of a parameter's gradient in its place."""
    whole: Any = parameter.grad
    parts, norm = project(whole), _norm_of(whole)
    parameter.grad = ProjectedGradient(parameter, parts, norm, project, name)


def _empty_like(like: Tensor) -> ProjectedGradient:
    made: Any = Tensor._make_wrapper_subclass(
        ProjectedGradient, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
    )
    own: ProjectedGradient = made
    return own


def _flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def _is_factor(value: Any) -> bool:
    """Return whether a value is one number."""
    if isinstance(value, ProjectedGradient):
        return False
    return not isinstance(value, Tensor) or value.numel() == 1


def _arrays(gradient: Tensor) -> list[Tensor]:
    """Return what scaling a gradient scales."""
    if not isinstance(gradient, ProjectedGradient):
        return [gradient]
    return [gradient._flat] if gradient._norm is None else [gradient._flat, gradient._norm]


def _scale_in_place(func: Any, gradient: Any, factor: Any) -> Any:
    if not isinstance(gradient, ProjectedGradient) or not _is_factor(factor):
        return NotImplemented
    for array in _arrays(gradient):
        func(array, factor)
    return gradient


def _scale(func: Any, gradient: Any, factor: Any) -> Any:
    if isinstance(factor, ProjectedGradient) and func is aten.mul.Tensor:
        gradient, factor = factor, gradient
    if not isinstance(gradient, ProjectedGradient) or not _is_factor(factor):
        return NotImplemented
    norm = None if gradient._norm is None else func(gradient._norm, factor)
    return gradient._with(func(gradient._flat, factor), norm)


def _scale_each(func: Any, gradients: Sequence[Tensor], factor: Any) -> Any:
    if not _is_factor(factor):
        return NotImplemented
    func([array for gradient in gradients for array in _arrays(gradient)], factor)
    return None


def _unscale_each(
    func: Any, gradients: Sequence[Tensor], found_inf: Tensor, inv_scale: Tensor
) -> None:
    func([_arrays(gradient)[0] for gradient in gradients], found_inf, inv_scale)
    for gradient in gradients:
        for norm in _arrays(gradient)[1:]:
            # The norm may overflow where no number does.
            norm.mul_(inv_scale)


def _zero(_: Any, gradient: ProjectedGradient) -> ProjectedGradient:
    gradient._flat.zero_()
    gradient._is_zero = True
    gradient._norm = gradient._flat.new_zeros(())
    return gradient


def _zero_each(_: Any, gradients: Sequence[Tensor]) -> None:
    for gradient in gradients:
        gradient.zero_()


def _add_in_place(_: Any, gradient: Any, other: Any, *, alpha: Any = 1) -> Any:
    if not isinstance(gradient, ProjectedGradient) or not isinstance(other, Tensor):
        return NotImplemented
    if other.shape != gradient.shape:
        return NotImplemented
    new: Sequence[Tensor]
    kept = gradient.parts
    if isinstance(other, ProjectedGradient):
        new, norm = other.parts, other._norm
    else:
        new, norm = gradient._project(other), _norm_of(other)
    for own, added in zip(kept, new, strict=True):
        own.add_(added, alpha=alpha)
    gradient._norm = norm * alpha if gradient._is_zero and norm is not None else None
    gradient._is_zero = False
    return gradient


def _add(func: Any, gradient: Any, other: Any, *, alpha: Any = 1) -> Any:
    if isinstance(gradient, ProjectedGradient):
        return _add_in_place(func, gradient.clone(), other, alpha=alpha)
    return _add_in_place(func, other * alpha, gradient)


def _clone(_: Any, gradient: ProjectedGradient, **_options: Any) -> ProjectedGradient:
    norm = None if gradient._norm is None else gradient._norm.clone()
    return gradient._with(gradient._flat.clone(), norm)


def _detach(_: Any, gradient: ProjectedGradient) -> ProjectedGradient:
    return gradient._with(gradient._flat, gradient._norm)


def _norm(
    _: Any, gradient: ProjectedGradient, order: Any = 2, dim: Any = None, *rest: Any, **options: Any
) -> Any:
    if order != 2 or dim is not None or rest or gradient._norm is None:
        return NotImplemented
    return gradient._norm.abs().to(options.get("dtype") or gradient.dtype)


def _norm_each(func: Any, gradients: Sequence[Tensor], order: Any = 2, dtype: Any = None) -> Any:
    norms = [
        _norm(func, gradient, order, dtype=dtype)
        if isinstance(gradient, ProjectedGradient)
        else func([gradient], order, dtype=dtype)[0]
        for gradient in gradients
    ]
    return NotImplemented if any(norm is NotImplemented for norm in norms) else norms


def _norm_of(gradient: Tensor) -> Tensor:
    """Return the norm of a whole gradient, in float32 at least: that of scaled half precision may overflow."""
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=dtype)
    return norm


def _message(func: Any, args: Sequence[Any]) -> str:
    flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
    name = next(x._name for x in flat if isinstance(x, ProjectedGradient))
    if "norm" in str(func):
        return (
            f"the norm of the gradient of {name} is not known: it is the sum of several, of which accumulate_projected "
            "keeps the coefficients alone. Clip with its clip_norm_, and turn other clipping and logging of norms off "
            "(max_grad_norm=0, gradient_clip_val=None), or do without accumulate_projected"
        )
    return (
        f"{func} needs the whole gradient of {name}, of which accumulate_projected keeps the coefficients alone; "
        "gradients can be added, scaled, set to zero and asked for numbers that are not finite, or do without "
        "accumulate_projected"
    )


#: Questions that are answered for all numbers together.
_ASKS: Mapping[Any, tuple[Any, Any]] = {
    torch.isfinite: (torch.isfinite, torch.all),
    Tensor.isfinite: (torch.isfinite, torch.all),
    torch.isnan: (torch.isnan, torch.any),
    Tensor.isnan: (torch.isnan, torch.any),
    torch.isinf: (torch.isinf, torch.any),
    Tensor.isinf: (torch.isinf, torch.any),
}

#: What can be done without the numbers. Each is given the operation and its arguments.
_OPERATIONS: Mapping[Any, Callable[..., Any]] = {
    aten.add_.Tensor: _add_in_place,
    aten.add.Tensor: _add,
    aten.mul_.Tensor: _scale_in_place,
    aten.mul_.Scalar: _scale_in_place,
    aten.div_.Tensor: _scale_in_place,
    aten.div_.Scalar: _scale_in_place,
    aten.mul.Tensor: _scale,
    aten.mul.Scalar: _scale,
    aten.div.Tensor: _scale,
    aten.div.Scalar: _scale,
    aten._foreach_mul_.Scalar: _scale_each,
    aten._foreach_mul_.Tensor: _scale_each,
    aten._foreach_div_.Scalar: _scale_each,
    aten._foreach_div_.Tensor: _scale_each,
    aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale_each,
    aten.zero_.default: _zero,
    aten._foreach_zero_.default: _zero_each,
    aten.clone.default: _clone,
    aten.detach.default: _detach,
    aten.alias.default: _detach,
    aten.linalg_vector_norm.default: _norm,
    aten._foreach_norm.Scalar: _norm_each,
}
