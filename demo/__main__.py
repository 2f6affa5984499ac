"""`python -m demo`: the embedded WebUI with this repository as its extension; a comparison first, then the page."""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

# Before torch is imported: threads that spin while they wait slow each other down on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from demo.comparison import SHEET, NotActive, compare, side_by_side
from demo.libraries import begin_again_with_those_of
from demo.webui.boot import MODELS, REPOSITORY, boot
from demo.webui.checkpoints import available
from demo.webui.hosts import HOSTS

SIZE = 256
"""Pixels a side: at this size a full call of the demo's UNet is far above the host's own work for a step.
The trained checkpoint's pictures are of this size too."""

PROMPT = "red apple"
"""One of the prompts that the trained checkpoint knows: demo/checkpoint/README.md."""


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Our own options; the rest is the embedded host's command line, to which extensions add theirs."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the comparison")
    parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860 on")
    parser.add_argument("--host", choices=sorted(HOSTS), default="a1111", help="which WebUI to embed")
    parser.add_argument("--model", choices=sorted(MODELS), default="sd1", help="layout of the UNet")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--preset", default="Balanced", help="DeepCache's preset")
    parser.add_argument("--interval", type=int, help="instead of a preset: DeepCache's cache_interval")
    parser.add_argument("--branch", type=int, default=0, help="... and its cache_branch_id")
    parser.add_argument("--out", type=Path, default=SHEET, help="where both pictures go; default: %(default)s")
    parser.add_argument("--no-comparison", action="store_true", help="serve at once")
    return parser.parse_known_args()


def main() -> int:
    options, arguments = parse()
    begin_again_with_those_of(options.host)
    with boot(REPOSITORY, options.model, arguments, install=True, host=options.host) as host:
        print(f"{options.host} {HOSTS[options.host].version}, Gradio {version('gradio')}")
        url = host.serve(options.port)
        if not options.no_comparison:
            request = {
                "prompt": PROMPT,
                "steps": options.steps,
                "sampler_name": "Euler",
                "seed": 1,
                "width": SIZE,
                "height": SIZE,
                "cfg_scale": 5,
            }
            weights = "trained" if available()[MODELS[options.model]].weights else "random"
            print(f'{options.model}, "{PROMPT}", {options.steps} steps, Euler, {SIZE}x{SIZE}, {weights} weights')
            settings = {"preset": options.preset}
            if options.interval is not None:
                settings = {"cache_interval": options.interval, "cache_branch_id": options.branch}
            try:
                outcome = compare(url, request, settings)
            except NotActive as error:
                print(f"DeepCache did not run: {error}", file=sys.stderr)
                return 1
            picture = side_by_side(outcome, options.out)
            print(f"saved {os.path.relpath(picture)}")
            print(outcome.table(), flush=True)
        if options.once:
            return 0
        host.module("shared").cmd_opts.show_steps = True
        print(f"serving on {url} (Ctrl-C ends)", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
