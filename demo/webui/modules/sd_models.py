"""Checkpoints: loading one, and putting another in its place."""

from __future__ import annotations

from typing import Any

from modules import script_callbacks, sd_model, shared

from demo.webui.checkpoints import Checkpoint, available


class CheckpointInfo:
    """A checkpoint in the model list."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.name = self.title = self.short_title = checkpoint.title
        self.name_for_extra = self.model_name = checkpoint.name
        self.shorthash = f"{checkpoint.seed:010x}"


class SdModelData:
    @property
    def sd_model(self) -> Any:
        return shared.sd_model


model_data = SdModelData()
checkpoints_list: dict[str, CheckpointInfo] = {}
checkpoint_aliases: dict[str, CheckpointInfo] = {}


def list_models() -> None:
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    for checkpoint in available().values():
        info = CheckpointInfo(checkpoint)
        checkpoints_list[info.title] = info
        checkpoint_aliases.update({info.title: info, info.model_name: info})


def get_closet_checkpoint_match(name: str) -> CheckpointInfo | None:
    """The host's own spelling."""
    return checkpoint_aliases.get(name)


def select_checkpoint() -> CheckpointInfo:
    """The one the options name."""
    return checkpoint_aliases[shared.opts.sd_model_checkpoint]


def reload_model_weights(info: CheckpointInfo | None = None) -> Any:
    """Make `info` (or the options' checkpoint) the loaded one."""
    info = info or select_checkpoint()
    before = shared.sd_model
    if getattr(before, "sd_checkpoint_info", None) is info:
        return before
    shared.sd_model = sd_model.loaded(info, before)
    script_callbacks.call("model_loaded", shared.sd_model)
    return shared.sd_model
