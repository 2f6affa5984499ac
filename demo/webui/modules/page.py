"""Scripts and styles in the page: the host's own first, then each extension's javascript/ and style.css."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr
from modules import embedded, extensions, gradio_extensions, paths, script_callbacks

_ELSEWHERE = re.compile(r"""<script[^>]+src="https?://[^>]*>\s*</script>|<link[^>]+href="https?://[^>]*>""")
_template_response = gr.routes.templates.TemplateResponse


def head() -> str:
    """Everything inline, so that no further file has to be served. The host's own first: what all have, then what this
    kind of host has.
    """
    own = [Path(paths.script_path) / "page"]
    if embedded.table.folder:
        own.append(Path(paths.script_path) / embedded.table.folder / "page")
    parts = []
    for root in [*own, *(Path(extension.path) for extension in extensions.active())]:
        folder = root if root in own else root / "javascript"
        for path in sorted(folder.glob("*.js")) + sorted(folder.glob("*.mjs")):
            kind = "module" if path.suffix == ".mjs" else "text/javascript"
            text = path.read_text(encoding="utf-8").replace("</script", "<\\/script")
            parts.append(f'<script type="{kind}" data-file="{path.name}">\n{text}\n</script>')
        style = root / "style.css"
        if style.exists():
            parts.append(f'<style data-file="{root.name}">\n{style.read_text(encoding="utf-8")}\n</style>')
    return "\n".join(parts)


def install() -> None:
    """Let Gradio put `head()` into the page. Done anew for each host, on Gradio's own function."""

    def with_head(*args: Any, **kwargs: Any) -> Any:
        response = _template_response(*args, **kwargs)
        # Gradio's page would ask other machines for fonts and a script: this one stays at home.
        html = _ELSEWHERE.sub("", response.body.decode())
        response.body = html.replace("</head>", f"{head()}</head>", 1).encode()
        response.init_headers()
        return response

    with_head.original = _template_response  # type: ignore[attr-defined]
    gr.routes.templates.TemplateResponse = with_head


def announce_components(on: bool = True) -> None:
    """Tell the extensions of each component that is made, by `on_before_component` and `on_after_component`.

    Until the host is closed: Gradio 4 makes components anew while the page is used.
    """

    def announcing(plain: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            script_callbacks.call("before_component", self, **kwargs)
            plain(self, *args, **kwargs)
            script_callbacks.call("after_component", self, **kwargs)

        return init

    for kind, plain in _component_inits.items():
        kind.__init__ = announcing(plain) if on else plain


_component_inits = {kind: kind.__init__ for kind in (gradio_extensions.COMPONENT, gr.blocks.BlockContext)}
_template_response = getattr(_template_response, "original", _template_response)
