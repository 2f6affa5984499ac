"""Settings of the whole host; extensions add theirs in `on_ui_settings`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class OptionInfo:
    """One setting: its default, and how the settings page would show it."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        onchange: Callable[[], None] | None = None,
        section: tuple | None = None,
        refresh: Any = None,
        comment_before: str = "",
        comment_after: str = "",
        infotext: str | None = None,
        restrict_api: bool = False,
        category_id: str | None = None,
    ) -> None:
        self.default, self.label = default, label
        self.component, self.component_args = component, component_args
        self.onchange, self.section, self.refresh = onchange, section, refresh
        self.comment_before, self.comment_after = comment_before, comment_after
        self.infotext, self.restrict_api, self.category_id = infotext, restrict_api, category_id
        self.do_not_save = False

    def link(self, label: str, url: str) -> OptionInfo:
        self.comment_before += f"[<a href='{url}' target='_blank'>{label}</a>]"
        return self

    def js(self, label: str, js_func: str) -> OptionInfo:
        self.comment_before += f"[<a onclick='{js_func}(); return false'>{label}</a>]"
        return self

    def info(self, info: str) -> OptionInfo:
        return self.html(f"<span class='info'>({info})</span>")

    def html(self, html: str) -> OptionInfo:
        self.comment_after += html
        return self

    def needs_restart(self) -> OptionInfo:
        return self.html(" <span class='info'>(requires restart)</span>")

    def needs_reload_ui(self) -> OptionInfo:
        return self.html(" <span class='info'>(requires Reload UI)</span>")


class OptionHTML(OptionInfo):
    """A text on the settings page."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.do_not_save = True


def options_section(section: tuple, options: dict[str, OptionInfo]) -> dict[str, OptionInfo]:
    """The same options, told which section they belong to."""
    for option in options.values():
        option.section = section
    return options


class Options:
    """Values by attribute (`opts.name`), in `data`, with the defaults in `data_labels`."""

    def __init__(self, data_labels: dict[str, OptionInfo]) -> None:
        self.__dict__["data_labels"] = data_labels
        self.__dict__["data"] = {key: option.default for key, option in data_labels.items()}

    def __getattr__(self, name: str) -> Any:
        if name in self.data:
            return self.data[name]
        if name in self.data_labels:
            return self.data_labels[name].default
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.data[name] = value

    def set(self, key: str, value: Any, is_api: bool = False, run_callbacks: bool = True) -> bool:
        """Set one value; False where it changes nothing or may not be set by the API."""
        option = self.data_labels.get(key)
        if self.data.get(key) == value or (option and (option.do_not_save or (is_api and option.restrict_api))):
            return False
        self.data[key] = value
        if run_callbacks and option and option.onchange:
            option.onchange()
        return True

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        if key not in self.data and not info.do_not_save:
            self.data[key] = info.default

    def get_default(self, key: str) -> Any:
        option = self.data_labels.get(key)
        return option.default if option else None

    def onchange(self, key: str, func: Callable[[], None], call: bool = True) -> None:
        self.data_labels[key].onchange = func
        if call:
            func()
