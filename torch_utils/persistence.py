"""NVlabs' pickle format, read as inert data and written; no other module of the project unpickles."""

from __future__ import annotations

import copy
from typing import Any

import torch


class PersistentModule(torch.nn.Module):
    """A module that remembers the arguments it was built with, as NVlabs' pickles store them.

    `_init_args` (tuple) and `_init_kwargs` (dict) are part of the file format (the state of every pickled layer).
    """

    _init_args: tuple[Any, ...]
    _init_kwargs: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> PersistentModule:
        self = super().__new__(cls)
        self.__dict__["_init_args"] = args
        self.__dict__["_init_kwargs"] = copy.deepcopy(kwargs)
        return self

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The keyword arguments this module was built with, as a copy."""
        return copy.deepcopy(self._init_kwargs)
