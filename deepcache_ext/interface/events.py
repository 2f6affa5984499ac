"""What joins the accordion to the host's own controls: plan and table follow them, and a run's end."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from ..measure.store import Profiles
from ..plan.preview import PlannedPass
from ..report.run_report import RunOutcome
from . import last_run, measure, plan_strip
from .accordion import Accordion, in_page, updates
from .asked import Foresee, of_page

log = logging.getLogger("deepcache")

TABS = ("txt2img", "img2img", "control")
"""The last is SD.Next's alone."""

HOST_CONTROLS = {
    "steps": ("{tab}_steps",),
    "sampler_name": ("{tab}_sampling",),
    "scheduler": ("{tab}_scheduler",),
    "denoising_strength": ("{tab}_denoising_strength",),
    "enable_hr": ("{tab}_hr-checkbox", "{tab}_enable_hr"),
    "hr_second_pass_steps": ("{tab}_hires_steps", "{tab}_steps_alt"),
    "hr_sampler_name": ("{tab}_hr_sampler", "{tab}_sampling_alt", "hr_sampler"),
    "hr_scheduler": ("{tab}_hr_scheduler", "hr_scheduler"),
    "width": ("{tab}_width",),
    "height": ("{tab}_height",),
    "batch_size": ("{tab}_batch_size",),
    "hr_scale": ("{tab}_hr_scale",),
    "hr_resize_x": ("{tab}_hr_resize_x",),
    "hr_resize_y": ("{tab}_hr_resize_y",),
}
"""By the names of the host's API: the ids of its controls; A1111's, then SD.Next's and older hosts'."""

LAST = "{tab}_gallery"
"""Made after all settings of a tab: then everything is there to be joined."""


def tab_of(script: Any, is_img2img: bool) -> str:
    """Where a script is drawn. SD.Next tells it by `parent`: in its Control tab a script says that it is txt2img's."""
    parent = getattr(script, "parent", None)
    return parent if parent in TABS else TABS[bool(is_img2img)]


class Page:
    """The accordions of all tabs. `foresee` and `latest` are the host's: what a run would do, what the last one did.
    `inactive`: why nothing would be cached, in words, or "".

    `component_made` must hear of every component of the host. A host that never shows one of them is served with
    what there is.
    """

    def __init__(
        self,
        foresee: Foresee,
        latest: Callable[[], RunOutcome | None],
        profiles: Profiles | None = None,
        inactive: Callable[[], str] = str,
    ) -> None:
        self._foresee, self._latest, self._profiles = foresee, latest, profiles or Profiles()
        self._inactive = inactive
        self._accordions: dict[str, Accordion] = {}
        self._controls: dict[str, dict[str, Any]] = {tab: {} for tab in TABS}
        self._complete: set[str] = set()
        """Tabs whose settings are all there."""
        self._joined: set[str] = set()

    def add(self, tab: str, accordion: Accordion) -> None:
        """An accordion has been drawn. Later ones of a tab are drawn outside the page, for the API: they stay alone."""
        if tab in self._accordions:
            return
        self._accordions[tab] = accordion
        if tab in self._complete:
            self._join(tab)

    def component_made(self, component: Any, **_: Any) -> None:
        """The host's callback: any component was made."""
        elem_id = getattr(component, "elem_id", None)
        if not isinstance(elem_id, str):
            return
        # A tab is joined once: Gradio 4 makes a component anew, and outside the page, whenever an event changes it.
        for tab in (tab for tab in TABS if tab not in self._joined):
            for name, ids in HOST_CONTROLS.items():
                # Ids without the tab's name are txt2img's.
                if elem_id in (one.format(tab=tab) for one in ids if "{tab}" in one or tab == TABS[0]):
                    self._controls[tab][name] = component
            if elem_id == LAST.format(tab=tab):
                self._complete.add(tab)
                if tab in self._accordions:
                    self._join(tab)

    def _join(self, tab: str) -> None:
        self._joined.add(tab)
        accordion, controls = self._accordions[tab], dict(self._controls[tab])
        names, count = list(controls), len(accordion.components)

        def show(*values: Any) -> list[Any]:
            own = dict(zip(accordion.components, values[:count], strict=True))
            asked = {n: _plain(controls[n], v) for n, v in zip(names, values[count:], strict=True)}
            passes, problem = self._plan(tab, values[:count], asked)
            head = plan_strip.header(passes) if own["enabled"] else ""
            run = self._latest()
            return [
                f"<span>{escape(head)}</span>" if head else "",
                # The page's script tells by the mark that an answer has come.
                f"{plan_strip.strip(passes, problem, asked)}<i data-made='{secrets.token_hex(4)}' hidden></i>",
                last_run.line(run),
                last_run.table(run),
                plan_strip.detail(passes),
                measure.status(passes, self._profiles),
                *updates(own, bool(asked.get("enable_hr", tab != "img2img"))),
            ]

        accordion.refresh.click(
            show,
            inputs=[*accordion.components.values(), *controls.values()],
            outputs=[
                accordion.header,
                accordion.strip,
                accordion.last_line,
                accordion.last_run,
                accordion.detail,
                accordion.measured,
                *accordion.conditional,
            ],
            show_progress=False,
            queue=False,
        )
        changed = f"() => {{ if (window.deepcacheChanged) deepcacheChanged('{tab}'); }}"
        for control in (*accordion.components.values(), *controls.values()):
            if hasattr(control, "change"):
                in_page(control.change, changed)

    def _plan(self, tab: str, args: tuple[Any, ...], asked: Mapping[str, Any]) -> tuple[list[PlannedPass], str]:
        try:
            inactive = self._inactive()
            if inactive:
                return [], f"{plan_strip.NOTHING}: {inactive}."
            if "steps" not in asked:
                return [], ""
            return of_page(args, {**asked, "img2img": tab == "img2img"}, self._foresee, self._profiles)
        except Exception:  # the page must stand whatever the host's controls hold
            log.debug("no plan of %s", asked, exc_info=True)
            return [], ""


def _plain(control: Any, value: Any) -> Any:
    """What the host's API would say: a choice by its name, none for "Use same sampler"."""
    if getattr(control, "type", None) == "index" and isinstance(value, int):
        choice = control.choices[value]
        value = choice[1] if isinstance(choice, (tuple, list)) else choice
    return None if isinstance(value, str) and value.startswith("Use same") else value
