"""Which host this one plays. `boot` sets it before any other module is loaded."""

from __future__ import annotations

from demo.webui.hosts import A1111, HostTable

table: HostTable = A1111
