"""`cmd_opts`, filled by `launch_utils.prepare` before any extension is loaded."""

from __future__ import annotations

import argparse

cmd_opts = argparse.Namespace()
