"""DeepCache for AUTOMATIC1111, Forge and its kin, SD.Next: registers the script and its callbacks."""

from modules import script_callbacks, scripts, shared

from deepcache_ext.hosts.detect import adapter, allow_in_control_tab, say_whose_title_is_ours
from deepcache_ext.interface import axes, console, events, infotext, measure, options, routes
from deepcache_ext.interface.accordion import OFF_NOTE, TITLE, build, connect_measure

console.set_up(options.log_level(shared))
host = adapter()
joined = events.Page(
    host.foresee,
    lambda: host.last_run,
    host.profiles,
    lambda: OFF_NOTE if host.disabled else host.inactive or host.refused(),
)
requests = measure.Requests()
allow_in_control_tab(scripts, TITLE)


class DeepCacheScript(scripts.Script):
    def title(self):
        return TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        accordion = build(self.elem_id, host.disabled, host.inactive, host.hides_ticks)
        tab = events.tab_of(self, is_img2img)
        joined.add(tab, accordion)
        connect_measure(accordion, tab, requests.press)
        self.infotext_fields = infotext.paste_fields(accordion.components, accordion.notice, host.pastes_updates_only)
        self.paste_field_names = infotext.paste_names(self.infotext_fields)
        return [*accordion.components.values(), accordion.request]

    def before_process(self, p, *args):
        args, asked = requests.taken(args)
        host.measure(p, args, asked)
        host.before_process(p, args)

    # A pass may be announced twice: hosts before 1.10 know only the first two of these three.
    def process_batch(self, p, *args, **kwargs):
        host.before_sampling(p, measure.split(args)[0])

    def before_hr(self, p, *args):
        host.before_sampling(p, measure.split(args)[0])

    def process_before_every_sampling(self, p, *args, **kwargs):
        host.before_sampling(p, measure.split(args)[0])

    def post_sample(self, p, ps=None, *args):
        host.after_sampling(p)

    def postprocess_batch(self, p, *args, **kwargs):
        host.after_batch(p)

    def postprocess(self, p, processed=None, *args):
        host.after_process(p)


def obey_options():
    """At the start, and whenever one of ours is set on the settings page."""
    host.disabled = options.switched_off(shared)
    host.trusted = options.trusted(shared)
    console.set_up(options.log_level(shared))


def on_app_started(_blocks, app):
    say_whose_title_is_ours(scripts, TITLE, DeepCacheScript)
    routes.mount(app, host.foresee, lambda: host.last_run, routes.auth_of(shared.cmd_opts), host.profiles)


obey_options()
script_callbacks.on_ui_settings(lambda: options.add_options(shared, obey_options))
script_callbacks.on_before_ui(lambda: axes.add_axes(scripts.scripts_data, host.branches))
script_callbacks.on_app_started(on_app_started)
script_callbacks.on_after_component(joined.component_made)
if hasattr(script_callbacks, "on_after_process"):  # SD.Next: comes even where `postprocess` does not
    script_callbacks.on_after_process(host.after_process)
script_callbacks.on_cfg_denoiser(host.on_cfg_denoiser)
if hasattr(script_callbacks, "on_cfg_after_cfg"):
    script_callbacks.on_cfg_after_cfg(host.on_cfg_after_cfg)
script_callbacks.on_model_loaded(host.on_model_loaded)
script_callbacks.on_script_unloaded(host.on_script_unloaded)
