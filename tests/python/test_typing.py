"""What a Python user calls says what it takes: in its signature, in its docstring, and to mypy."""

import inspect
import textwrap
import typing

import pytest
from mypy import api

from deepcache_ext import DeepCache, DeepCacheSDHelper
from deepcache_ext.settings.fields import FIELD

CALLED = [
    DeepCache.__init__,
    DeepCache.enable,
    DeepCache.disable,
    DeepCache.new_run,
    DeepCache.report,
    DeepCacheSDHelper.__init__,
    DeepCacheSDHelper.set_params,
    DeepCacheSDHelper.enable,
    DeepCacheSDHelper.disable,
]


@pytest.mark.parametrize("called", CALLED, ids=lambda called: called.__qualname__)
def test_every_argument_has_a_type_and_is_explained(called):
    hints, signature = typing.get_type_hints(called), inspect.signature(called)
    names = [name for name in signature.parameters if name != "self"]
    assert set(names) | {"return"} == set(hints)
    for name in names:
        assert signature.parameters[name].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        assert f"\n{name}: " in f"\n{inspect.getdoc(called)}", name


@pytest.mark.parametrize("called", CALLED, ids=lambda called: called.__qualname__)
def test_every_call_has_an_example(called):
    """In its own docstring, or a constructor's in the class's: code that can be read as such."""
    doc = inspect.getdoc(called) or ""
    if called is DeepCacheSDHelper.__init__:
        doc = inspect.getdoc(DeepCacheSDHelper) or ""
    name = called.__qualname__.rpartition(".")[2]
    wanted = called.__qualname__.partition(".")[0] if name == "__init__" else name
    example = doc.rpartition("\n\n")[2]
    compile(textwrap.dedent(example), "example", "exec")
    assert f"{wanted}(" in example


def test_a_setting_that_is_not_given_is_none():
    parameters = list(inspect.signature(DeepCache).parameters.values())
    assert parameters[0].name == "target" and parameters[0].default is inspect.Parameter.empty
    for parameter in parameters[1:]:
        if parameter.name == "trusted":  # no setting: of names there are none
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default == ()
            continue
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is None
        kind = type(FIELD[parameter.name].default)
        assert typing.get_type_hints(DeepCache.__init__)[parameter.name] == kind | None


USER = """
from torch import nn

from deepcache_ext import DeepCache, DeepCacheSDHelper, SettingsError


def faster(unet: nn.Module, interval: int) -> str:
    try:
        with DeepCache(unet, cache_interval=interval, estimator="copy", start=0, end=0.9) as cache:
            cache.new_run()
    except SettingsError as error:
        return error.field
    return f"{cache.report()} {cache.report().passes[-1].cached_calls + 1}"


def as_published(unet: nn.Module) -> None:
    helper = DeepCacheSDHelper(pipe=unet)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    helper.disable()


cache: DeepCache = DeepCache(nn.Linear(1, 1), preset="Balanced").enable()
"""

WRONG = """
from deepcache_ext import DeepCache, DeepCacheSDHelper

DeepCache(None, cache_interval="3")
DeepCache(None, cache_intervall=3)
DeepCacheSDHelper().set_params("3")
"""

# Other people's libraries are large and need not be read for this; ours is checked by `make lint`.
CONFIG = """
[mypy]
strict = True
follow_imports = silent
disallow_subclassing_any = False
[mypy-torch.*,numpy.*,diffusers.*]
follow_imports = skip
"""


def test_a_users_script_passes_mypy(tmp_path):
    (tmp_path / "mypy.ini").write_text(CONFIG, encoding="utf-8")
    options = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")]
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    said, failed, status = api.run([*options, str(tmp_path / "user.py")])
    assert status == 0, said + failed
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    said, _, status = api.run([*options, str(tmp_path / "wrong.py")])
    errors = [line.partition("error: ")[2] for line in said.splitlines() if "error: " in line and "Found" not in line]
    assert status == 1 and len(errors) == 3
    assert 'did you mean "cache_interval"' in errors[1]
