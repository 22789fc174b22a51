"""An attribute that is computed when it is first read, without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

__all__ = ["lazy_property"]

T = TypeVar("T")


class lazy_property(Generic[T]):  # noqa: N801 - a decorator, as property is
    """Compute an attribute when it is first read, and keep it.

    In Python 3.11, `functools.cached_property` holds one lock per class and property while it computes. A
    process that is forked in that moment has no thread that could ever release the lock, and waits forever.
    Here several threads may compute the value at the same time; all of them get the value of the first.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> Self | T:
        if instance is None:
            return self
        # Without __set__, Python reads the attribute of the instance from now on. A frozen dataclass has no
        # other way to set it.
        value: T = vars(instance).setdefault(self._name, self._compute(instance))
        return value
