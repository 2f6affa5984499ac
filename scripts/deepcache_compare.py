"""DeepCache: compare. One prompt without caching and with several settings, side by side, from the Script dropdown."""

import copy
import logging
import math
import time
from pathlib import Path

import gradio as gr
from modules import images, processing, scripts, shared

from deepcache_ext.interface import compare
from deepcache_ext.settings.fields import PRESETS

log = logging.getLogger("deepcache")


class DeepCacheCompareScript(scripts.Script):
    def title(self):
        return "DeepCache: compare"

    def ui(self, is_img2img):
        gr.HTML("<p>The first picture is made without DeepCache, the others as set below, all of one seed.</p>")
        chosen = gr.CheckboxGroup(
            list(PRESETS),
            value=list(PRESETS),
            label="Presets",
            elem_id=self.elem_id("presets"),
        )
        typed = gr.Textbox(
            "",
            lines=2,
            label="Settings of your own",
            info="One per line.",
            placeholder="cache_interval=3, cache_branch_id=0, estimator=copy",
            elem_id=self.elem_id("typed"),
        )
        with gr.Row():
            gain = gr.Slider(
                0,
                20,
                8,
                step=1,
                label="Amplify differences",
                info="How many times; 0 leaves them out.",
                elem_id=self.elem_id("gain"),
            )
            warm_up = gr.Checkbox(
                True,
                label="Warm up first",
                elem_id=self.elem_id("warm_up"),
                info="Two steps that do not count, so that the first picture is not slower than the others.",
            )
        return [chosen, typed, gain, warm_up]

    def run(self, p, chosen=tuple(PRESETS), typed="", gain=8, warm_up=True):
        wanted = [("without DeepCache", {"enabled": False}), *compare.wishes(chosen, typed)]
        processing.fix_seed(p)
        p.n_iter = p.batch_size = 1
        p.do_not_save_grid = True
        shared.state.job_count = len(wanted) + bool(warm_up)
        if warm_up:
            self._make(p, {"enabled": False}, warms_up=True)
        shots, first = [], None
        for label, settings in wanted:
            if shared.state.interrupted or getattr(shared.state, "stopping_generation", False):
                break
            shared.state.textinfo = f"DeepCache: {label}"
            start = time.perf_counter()
            made = self._make(p, settings)
            seconds = time.perf_counter() - start
            if shared.state.interrupted or not made.images:
                break
            told = made.extra_generation_params.get("DeepCache", "")
            shots.append(compare.Shot(label, made.images[0], seconds, told))
            first = first or made
            first.infotexts = [*first.infotexts[: len(shots) - 1], made.infotexts[0]]
        if first is None:
            return processing.Processed(p, [], p.seed, "")
        sheet = compare.sheet(shots, gain, _font(shots[0].image.width))
        self._save(sheet, shots, p)
        first.images = [sheet, *(shot.image for shot in shots)]
        first.infotexts = [first.infotexts[0], *first.infotexts]
        first.index_of_first_image = 1
        return first

    @staticmethod
    def _make(p, settings, warms_up=False):
        """One picture; what is asked of `p` stays as it is."""
        again = copy.copy(p)
        again.extra_generation_params = dict(p.extra_generation_params)
        again.override_settings = dict(p.override_settings or {})
        again.deepcache_overrides = settings
        if warms_up:
            # Of img2img at least one step must be left, and of a hires pass no more than that.
            strength = p.denoising_strength if getattr(p, "init_images", None) else 1
            again.steps = math.ceil(2 / max(strength or 1, 0.1))
            again.hr_second_pass_steps = 1
            again.do_not_save_samples = True
        return processing.process_images(again)

    @staticmethod
    def _save(sheet, shots, p):
        if not shared.opts.grid_save:
            return
        path, *_ = images.save_image(  # SD.Next gives three values
            sheet,
            p.outpath_grids,
            "deepcache_compare",
            extension=shared.opts.grid_format,
            prompt=p.prompt,
            seed=p.seed,
            grid=True,
            p=p,
        )
        try:
            page = Path(path)
            page.with_suffix(".html").write_text(compare.as_html(shots, page.name, str(p.prompt)), encoding="utf-8")
            page.with_suffix(".csv").write_text(compare.as_csv(shots), encoding="utf-8")
        except OSError as error:
            log.warning("the comparison's table could not be written: %s", error)


def _font(width):
    size = max(12, width // 28)
    try:
        return images.get_font(size)
    except (AttributeError, OSError):  # a host with fonts elsewhere
        return None
