"""The page: txt2img and img2img, and in SD.Next Control, each with the scripts."""

from __future__ import annotations

import html
import traceback
from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import infotext_utils, page, processing, script_callbacks, scripts, sd_samplers, shared
from modules.api.api import KINDS
from modules.call_queue import queue_lock
from modules.gradio_extensions import JS
from modules.ui_components import FormRow, InputAccordion, ToolButton

UPSCALERS = [*shared.latent_upscale_modes, *shared.picture_upscalers]


def create_ui() -> gr.Blocks:
    """The whole page. The scripts of both tabs get their places in the argument list here."""
    page.install()
    page.announce_components()
    # Fonts of the system: the page must not ask anything outside this machine.
    theme = gr.themes.Default(font=["Source Sans Pro", "sans-serif"], font_mono=["monospace"])
    with gr.Blocks(theme=theme, title="Embedded WebUI", analytics_enabled=False) as demo, gr.Tabs(elem_id="tabs"):
        for tab in [*KINDS, *(["control"] if scripts.HAS_CONTROL_TAB else [])]:
            with gr.TabItem(tab, id=tab, elem_id=f"tab_{tab}"):
                _create_tab(tab)
    return demo


def _create_tab(tab: str) -> None:
    runner = getattr(scripts, f"scripts_{tab}")
    runner.initialize_scripts(tab == "img2img", tab == "control")
    fields: dict[str, Any] = {}
    with gr.Row(elem_id=f"{tab}_toprow"):
        with gr.Column(scale=6):
            fields["prompt"] = gr.Textbox(
                "red apple",
                label="Prompt",
                show_label=False,
                lines=2,
                elem_id=f"{tab}_prompt",
                placeholder="Prompt, or an infotext to be read with the arrow",
            )
            fields["negative_prompt"] = gr.Textbox(
                "",
                label="Negative prompt",
                show_label=False,
                lines=2,
                elem_id=f"{tab}_neg_prompt",
                placeholder="Negative prompt",
            )
        with gr.Column(scale=1, min_width=160):
            generate = gr.Button("Generate", variant="primary", elem_id=f"{tab}_generate")
            interrupt = gr.Button("Interrupt", elem_id=f"{tab}_interrupt")
            paste = ToolButton("↙️", elem_id=f"{tab}_paste")
    with gr.Row():
        with gr.Column(elem_id=f"{tab}_settings"):
            _settings(tab, fields)
            if tab != "control":
                inputs = _scripts(tab)
        with gr.Column(elem_id=f"{tab}_results"):
            gallery = gr.Gallery(label="Output", show_label=False, elem_id=f"{tab}_gallery", columns=2, height=512)
            info = gr.HTML(elem_id=f"html_info_{tab}")
            log = gr.HTML(elem_id=f"html_log_{tab}", elem_classes=["html-log"])
    if tab == "control":  # below the pictures, as there
        inputs = _scripts(tab)

    generate.click(
        _generate(tab, list(fields)),
        inputs=[*fields.values(), *inputs],
        outputs=[gallery, info, log],
        show_progress="hidden",
        **{JS: f"(...values) => {{ startProgress('{tab}'); return values; }}"},
    ).then(fn=None, **{JS: f"() => endProgress('{tab}')"})
    interrupt.click(lambda: shared.state.interrupt(), show_progress="hidden")
    pasted = [
        infotext_utils.PasteField(fields[name], key)
        for name, key in (
            ("prompt", "Prompt"),
            ("negative_prompt", "Negative prompt"),
            ("steps", "Steps"),
            ("sampler_name", "Sampler"),
            ("cfg_scale", "CFG scale"),
            ("seed", "Seed"),
            ("width", "Size-1"),
            ("height", "Size-2"),
            ("denoising_strength", "Denoising strength"),
        )
    ]
    infotext_utils.connect_paste(
        paste,
        [*pasted, *runner.infotext_fields],
        fields["prompt"],
        lambda text, params: script_callbacks.call("infotext_pasted", text, params),
    )


def _scripts(tab: str) -> list[Any]:
    with gr.Group(elem_id=f"{tab}_script_container"):
        return getattr(scripts, f"scripts_{tab}").setup_ui(tab)


def _settings(tab: str, fields: dict[str, Any]) -> None:
    """The host's own controls, by the names of the processing's attributes."""

    def slider(name: str, label: str, low: float, high: float, value: float, step: float, elem_id: str) -> None:
        fields[name] = gr.Slider(low, high, value, step=step, label=label, elem_id=f"{tab}_{elem_id}")

    if tab == "img2img":
        with FormRow():
            fields["init_images"] = gr.Image(type="pil", label="Image", elem_id="img2img_image", height=256)
            fields["mask"] = gr.Image(type="pil", label="Mask (white is made anew)", elem_id="img2img_mask", height=256)
    with FormRow():
        fields["sampler_name"] = gr.Dropdown(
            sd_samplers.visible_sampler_names(), value="Euler", label="Sampling method", elem_id=f"{tab}_sampling"
        )
        fields["scheduler"] = gr.Dropdown(
            list(sd_samplers.schedulers), value="Automatic", label="Schedule type", elem_id=f"{tab}_scheduler"
        )
        slider("steps", "Sampling steps", 1, 150, 20, 1, "steps")
    with FormRow():
        slider("width", "Width", 64, 1024, 256, 8, "width")
        slider("height", "Height", 64, 1024, 256, 8, "height")
    with FormRow():
        slider("n_iter", "Batch count", 1, 16, 1, 1, "batch_count")
        slider("batch_size", "Batch size", 1, 8, 1, 1, "batch_size")
    with FormRow():
        slider("cfg_scale", "CFG Scale", 1.0, 30.0, 7.0, 0.5, "cfg_scale")
        fields["seed"] = gr.Number(-1, label="Seed", precision=0, elem_id=f"{tab}_seed")
    if tab == "img2img":
        slider("denoising_strength", "Denoising strength", 0.0, 1.0, 0.75, 0.01, "denoising_strength")
        return
    if tab == "control":
        slider("denoising_strength", "Strength", 0.0, 0.99, 0.3, 0.01, "denoising_strength")
        fields["enable_hr"] = gr.Checkbox(False, label="Enable refine pass", elem_id="control_enable_hr")
        return
    with InputAccordion(False, label="Hires. fix", elem_id="txt2img_hr") as fields["enable_hr"]:
        fields["hr_upscaler"] = gr.Dropdown(UPSCALERS, value="Latent", label="Upscaler", elem_id="txt2img_hr_upscaler")
        with FormRow():
            slider("hr_second_pass_steps", "Hires steps", 0, 150, 0, 1, "hires_steps")
            slider("denoising_strength", "Denoising strength", 0.0, 1.0, 0.7, 0.01, "denoising_strength")
            slider("hr_scale", "Upscale by", 1.0, 4.0, 2.0, 0.05, "hr_scale")


def _generate(tab: str, names: list[str]) -> Callable[..., tuple[list, str, str]]:
    runner = getattr(scripts, f"scripts_{tab}")

    def run(*values: Any) -> tuple[list, str, str]:
        wishes = dict(zip(names, values[: len(names)], strict=True))
        if tab == "txt2img":
            if hasattr(KINDS[tab], "hr_cfg"):
                wishes["hr_cfg"] = wishes["cfg_scale"]
            if not wishes["enable_hr"]:
                wishes["denoising_strength"] = None
        if tab == "img2img":
            if wishes["init_images"] is None:
                return [], "", "<p>There is no picture to begin with.</p>"
            wishes["init_images"] = [wishes["init_images"]]
        with queue_lock:
            p = KINDS.get(tab, KINDS["txt2img"])(**wishes)
            try:
                shared.state.begin(job=tab)
                p.scripts = runner
                p.script_args = values[len(names) :]
                made = runner.run(p, *p.script_args) or processing.process_images(p)
            except Exception as error:
                traceback.print_exc()
                return [], "", f"<p class='error'>{html.escape(f'{type(error).__name__}: {error}')}</p>"
            finally:
                p.close()
                shared.state.end()
        return made.images, _paragraphs(made.info, "infotext"), _paragraphs(made.comments, "comments")

    return run


def _paragraphs(text: str, kind: str) -> str:
    lines = [f"<p>{html.escape(line)}</p>" for line in text.splitlines() if line]
    return f"<div class='{kind}'>{''.join(lines)}</div>" if lines else ""
