"""Controls that Gradio has not."""

from __future__ import annotations

from functools import wraps
from typing import Any

import gradio as gr
from modules.gradio_extensions import JS


class FormComponent:
    """May stand in a Gradio form."""

    def get_expected_parent(self) -> Any:
        return gr.components.Form


class FormRow(FormComponent, gr.Row):
    def get_block_name(self) -> str:
        return "row"


class FormColumn(FormComponent, gr.Column):
    def get_block_name(self) -> str:
        return "column"


class FormGroup(FormComponent, gr.Group):
    def get_block_name(self) -> str:
        return "group"


class ToolButton(FormComponent, gr.Button):
    """A small button with one sign on it."""

    @wraps(gr.Button.__init__)  # Gradio reads from the signature what the page is told
    def __init__(self, value: str = "", *args: Any, elem_classes: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(value, *args, elem_classes=["tool", *(elem_classes or [])], **kwargs)

    def get_block_name(self) -> str:
        return "button"


class InputAccordion(gr.Checkbox):
    """An accordion with a checkbox in its head; as an input it is that checkbox: True while open.

    Made of a hidden checkbox `ELEM_ID-checkbox` and an accordion `ELEM_ID`; the page's script keeps them in step.
    """

    count = 0

    @wraps(gr.Checkbox.__init__)
    def __init__(self, value: bool | None = None, **kwargs: Any) -> None:
        if kwargs.get("render") is False:
            # Gradio 4 makes a component anew, outside the page, to hold what an event changed in it.
            super().__init__(value, **kwargs)
            return
        self.accordion_id = kwargs.pop("elem_id", None)
        if self.accordion_id is None:
            self.accordion_id = f"input-accordion-{InputAccordion.count}"
            InputAccordion.count += 1
        label = kwargs.pop("label", "Accordion")
        super().__init__(value, label=label, elem_id=f"{self.accordion_id}-checkbox", visible=False, **kwargs)
        script = f"checked => inputAccordionChecked('{self.accordion_id}', checked)"
        self.change(fn=None, inputs=[self], **{JS: script})
        self.accordion = gr.Accordion(
            label, open=bool(value), elem_id=self.accordion_id, elem_classes=["input-accordion"]
        )

    def extra(self) -> Any:
        """A place in the accordion's head: `with accordion.extra(): ...`."""
        return gr.Column(elem_id=f"{self.accordion_id}-extra", elem_classes=["input-accordion-extra"], min_width=0)

    def __enter__(self) -> InputAccordion:
        self.accordion.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.accordion.__exit__(*error)

    def get_block_name(self) -> str:
        return "checkbox"
