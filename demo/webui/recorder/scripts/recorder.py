"""Writes down how the host calls a script and the UNet, in the format of the recordings of real hosts."""

import gradio as gr
import torch
from modules import embedded, script_callbacks, scripts, sd_model, shared

EVENTS = []
_seen = []  # (UNet, its hook)
_weights = []

NAMES = {
    "timesteps": "t",
    "sample": "x",
    "timestep": "t",
    "encoder_hidden_states": "context",
    "added_cond_kwargs": "y",
}
"""Of the UNets' arguments: ldm's, then diffusers'."""

OWN = (
    "steps",
    "is_hr_pass",
    "iteration",
    "denoising_strength",
    "enable_hr",
    "sampler_name",
    "batch_size",
    "n_iter",
    "width",
    "height",
    "hr_second_pass_steps",
)


def described(value):
    """A tensor by its shape, a plain value as it is, anything else by its type."""
    if isinstance(value, torch.Tensor):
        return list(value.shape)
    if isinstance(value, dict):
        return {key: described(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return f"list[{len(value)}] of {type(value[0]).__name__}" if value else "list[0]"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__name__


def numbers(tensor):
    return [round(float(value), 4) for value in tensor.flatten()]


def own(p):
    known = {"class": type(p).__name__}
    for name in OWN:
        known[name] = described(getattr(p, name, "(absent)"))
    for name in ("is_refiner_pass", "ops"):
        if hasattr(p, name):
            known[name] = list(value) if isinstance(value := getattr(p, name), list) else value
    if known["hr_second_pass_steps"] == "(absent)" or not getattr(p, "enable_hr", False):
        del known["hr_second_pass_steps"]
    return known


def restart():
    """Begin a new recording: forget the events, and number UNets and weights anew."""
    for _, hook in _seen:
        hook.remove()
    for entries in (EVENTS, _seen, _weights):
        entries.clear()


def identify(unet):
    """Numbers for the UNet object and for its weights, in order of appearance."""
    if not any(unet is known for known, _ in _seen):
        _seen.append((unet, unet.register_forward_pre_hook(on_unet, with_kwargs=True)))
    place = next(i for i, (known, _) in enumerate(_seen) if known is unet)
    total = sum(float(parameter.flatten()[0]) for parameter in unet.parameters())
    if total not in _weights:
        _weights.append(total)
    return place, _weights.index(total)


def of_pipeline(pipe, unet):
    known = {name: getattr(pipe, name, None) for name in ("num_timesteps", "guidance_scale")}
    return {
        "pipe": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_timesteps": len(pipe.scheduler.timesteps),
        "pipe_unet_is_self": pipe.unet is unet,
        **known,
    }


def on_unet(unet, args, kwargs):
    given = dict(zip(("x", "t", "context", "y"), args, strict=False))
    given.update({NAMES.get(key, key): value for key, value in kwargs.items()})
    place, weights = identify(unet)
    event = {
        "ev": "unet",
        "id": place,
        "weights": weights,
        "x": list(given["x"].shape),
        "t": numbers(given["t"]),
        "context": list(given["context"].shape),
        "y": described(given.get("y")),
        "nargs": len(args),
        "kwargs": sorted(kwargs),
    }
    options = given.get("transformer_options")
    if options is None:
        event.update(state_step=shared.state.sampling_step, state_steps=shared.state.sampling_steps)
        if hasattr(shared.sd_model, "scheduler"):
            event.update(of_pipeline(shared.sd_model, unet))
    else:
        event["transformer_options"] = {
            "cond_or_uncond": options["cond_or_uncond"],
            "keys": sorted(options),
            "sigmas": numbers(options["sigmas"]),
        }
    EVENTS.append(event)


def on_cfg_denoiser(params):
    identify(sd_model.unet_of(shared.sd_model))
    denoiser = params.denoiser
    EVENTS.append(
        {
            "ev": "callback",
            "name": "cfg_denoiser",
            "sigma": numbers(params.sigma),
            "x": list(params.x.shape),
            "sampling_step": params.sampling_step,
            "total_sampling_steps": params.total_sampling_steps,
            "denoiser_step": denoiser.step,
            "denoiser_total_steps": denoiser.total_steps,
            "denoiser_class": type(denoiser).__name__,
            "text_cond": described(params.text_cond),
            "text_uncond": described(params.text_uncond),
            "denoiser_p_is_hr_pass": denoiser.p.is_hr_pass,
        }
    )


def on_state(name):
    def callback(params):
        EVENTS.append(
            {
                "ev": "callback",
                "name": name,
                "x": list(params.x.shape),
                "sampling_step": params.sampling_step,
                "total_sampling_steps": params.total_sampling_steps,
            }
        )

    return callback


def on_model_loaded(model):
    place, weights = identify(sd_model.unet_of(model))
    EVENTS.append(
        {
            "ev": "callback",
            "name": "model_loaded",
            "model": type(model).__name__,
            "unet_class": type(sd_model.unet_of(model)).__name__,
            "id": place,
            "weights": weights,
        }
    )


def on_process(name):
    def callback(p):
        identify(sd_model.unet_of(shared.sd_model))
        EVENTS.append({"ev": "callback", "name": name, "args": [type(p).__name__], "kw": []})

    return callback


class Recorder(scripts.Script):
    def title(self):
        return "Recorder"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Checkbox(False, label="on", visible=False), gr.Number(0, precision=0, label="n", visible=False)]


def recorded(name):
    def hook(self, p, *args, **kwargs):
        EVENTS.append(
            {
                "ev": "hook",
                "name": name,
                "args": [type(value).__name__ for value in args],
                "kw": {key: described(kwargs[key]) for key in sorted(kwargs)},
                "p": own(p),
            }
        )

    return hook


for _name in embedded.table.hooks:
    setattr(Recorder, _name, recorded(_name))

script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
script_callbacks.on_cfg_denoised(on_state("cfg_denoised"))
script_callbacks.on_cfg_after_cfg(on_state("cfg_after_cfg"))
script_callbacks.on_model_loaded(on_model_loaded)
if hasattr(script_callbacks, "on_after_process"):
    script_callbacks.on_before_process(on_process("before_process"))
    script_callbacks.on_after_process(on_process("after_process"))
