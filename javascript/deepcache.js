// The accordion needs no script of ours: presets are applied by the page's own events.
