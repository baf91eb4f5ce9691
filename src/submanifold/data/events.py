"""Events of a split, with what belongs to each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeAlias

import numpy as np

from submanifold.common.errors import unexpected


@dataclass(frozen=True, eq=False)
class Events:
    """Events and what belongs to each of them; an index selects from all of it.

    It is no array, so that a conversion to one cannot lose the context: arrays are its attributes.

    Args:
        x: (N, ...) uint8 images or float vectors.
        context: What their density is conditional on: classes (N,), or columns (N, C). If there is
            one, :class:`.Batches` of the events train a conditional model.
        groups: Numbers (N,) of groups of events that are not independent of each other.
        labels: Labels (N,), which the density does not depend on.
        rows: Numbers (N,) of rows in the table that the events are from.
        changes: Numbers (N,) of values that differ from columns which the training has constant.

    Example:
        >>> events = Events(np.zeros((3, 2)), context=np.array([5, 6, 7]))
        >>> len(events), events[1:].context, events[[2, 0]].context
        (3, array([6, 7]), array([7, 5]))
    """

    x: np.ndarray
    context: np.ndarray | None = None
    groups: np.ndarray | None = None
    labels: np.ndarray | None = None
    rows: np.ndarray | None = None
    changes: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raise a UserError if there are not as many of a kind as events."""
        for name, values in self._parts().items():
            if len(values) != len(self.x):
                expected = f"one row for each of {len(self.x)} events"
                raise unexpected(name, expected, len(values))

    def __len__(self) -> int:
        """Number N of events."""
        return len(self.x)

    def __getitem__(self, index: Any) -> "Events":
        """Select events by a slice, a mask (N,) or numbers (n,)."""
        if isinstance(index, tuple) or not (isinstance(index, slice) or np.ndim(index) == 1):
            raise TypeError(f"index: expected a slice, a mask or numbers of events, got {index}.")
        return Events(**{name: values[index] for name, values in self._parts().items()})

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("events: expected an array, got Events. Use their attribute x.")

    @classmethod
    def concatenate(cls, parts: Sequence["Events"]) -> "Events":
        """Join events; those of all parts or of none have a context, and likewise the others."""
        of_parts = [part._parts() for part in parts]
        names = {name: None for of_part in of_parts for name in of_part}
        for name in names:
            if missing := sum(name not in of_part for of_part in of_parts):
                raise unexpected(name, "in all parts or in none", f"none in {missing} parts")
        return cls(**{name: np.concatenate([part[name] for part in of_parts]) for name in names})

    def _parts(self) -> dict[str, np.ndarray]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


EventsLike: TypeAlias = Events | np.ndarray
"""Events, or an array (N, ...) of some without a context."""


def as_events(events: EventsLike) -> Events:
    """Return events, or an array of them as events without a context."""
    return events if isinstance(events, Events) else Events(events)
