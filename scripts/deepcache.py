"""DeepCache for AUTOMATIC1111, Forge and its kin, SD.Next: registers the script and its callbacks."""

from modules import script_callbacks, scripts, shared

from deepcache_ext.hosts.webui import adapter, allow_in_control_tab
from deepcache_ext.interface import console, infotext, ui

console.set_up(getattr(shared.cmd_opts, "deepcache_log_level", "WARNING"))
host = adapter(disabled=getattr(shared.cmd_opts, "deepcache_disable", False))
allow_in_control_tab(scripts, ui.TITLE)


class DeepCacheScript(scripts.Script):
    def title(self):
        return ui.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        components = ui.build(self.elem_id, host.disabled)
        self.infotext_fields = infotext.paste_fields(components)
        self.paste_field_names = [key for _, key in self.infotext_fields if isinstance(key, str)]
        return list(components.values())

    def before_process(self, p, *args):
        host.before_process(p, args)

    # A pass may be announced twice: hosts before 1.10 know only the first two of these three.
    def process_batch(self, p, *args, **kwargs):
        host.before_sampling(p, args)

    def before_hr(self, p, *args):
        host.before_sampling(p, args)

    def process_before_every_sampling(self, p, *args, **kwargs):
        host.before_sampling(p, args)

    def post_sample(self, p, ps=None, *args):
        host.after_sampling(p)

    def postprocess_batch(self, p, *args, **kwargs):
        host.after_batch(p)

    def postprocess(self, p, processed=None, *args):
        host.after_process(p)


if hasattr(script_callbacks, "on_after_process"):  # SD.Next: comes even where `postprocess` does not
    script_callbacks.on_after_process(host.after_process)
script_callbacks.on_cfg_denoiser(host.on_cfg_denoiser)
script_callbacks.on_model_loaded(host.on_model_loaded)
script_callbacks.on_script_unloaded(host.on_script_unloaded)
