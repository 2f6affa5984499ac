"""From an infotext back to the controls."""

from __future__ import annotations

from typing import Any

from ..settings import FIELDS


def paste_fields(components: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Pairs of component and infotext key, as the host wants them in `Script.infotext_fields`.

    An infotext without DeepCache switches it off; any other absent key leaves its control as it is.
    """
    pairs: list[tuple[Any, Any]] = [(components["enabled"], _was_enabled)]
    pairs += [(components[field.name], field.infotext) for field in FIELDS if field.name != "enabled"]
    return pairs


def _was_enabled(params: dict[str, Any]) -> bool:
    return "DeepCache version" in params
