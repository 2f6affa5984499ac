"""Gradio 3 and 4 under one set of names, as far as this host's page and its extensions need it."""

from __future__ import annotations

import gradio as gr

GRADIO_4 = gr.__version__.startswith("4.")

JS = "js" if GRADIO_4 else "_js"
"""What an event's script in the page is called: `button.click(..., **{JS: "() => ..."})`."""

COMPONENT = gr.components.Component if GRADIO_4 else gr.components.IOComponent
"""What all controls are made of; containers are made of `gr.blocks.BlockContext`."""

if GRADIO_4:
    import gradio.component_meta

    # It writes a stub beside the source of every subclass, here into the repository.
    gradio.component_meta.create_or_modify_pyi = lambda *_: None
