// Plan and table are made by the server: this only tells it when something changed. It presses the accordion's
// Refresh button, which is out of sight, once the controls have come to rest, when the page is there or comes to the
// front, and when a generation has ended.

(function() {
    const REST = 120; // milliseconds
    const TABS = ["txt2img", "img2img", "control"]; // the last is SD.Next's
    const PATIENCE = 15000; // milliseconds that an answer is waited for
    const timers = {};
    const waits = {};
    const again = {};
    const seen = {};

    function button(tab) {
        return gradioApp().querySelector(`#script_${tab}_deepcache_refresh`);
    }

    // Every answer of the server carries another mark.
    function mark(tab) {
        return gradioApp().querySelector(`#script_${tab}_deepcache_strip [data-made]`)?.dataset.made;
    }

    // One question at a time: Gradio 4 drops a press while an answer is due, and in Gradio 3 the older one may come last.
    function refresh(tab) {
        again[tab] = Boolean(waits[tab]);
        if (waits[tab] || !button(tab)) return;
        const before = mark(tab), begun = Date.now();
        button(tab).click();
        waits[tab] = setInterval(() => {
            if (mark(tab) === before && Date.now() - begun < PATIENCE) return;
            clearInterval(waits[tab]);
            waits[tab] = null;
            if (again[tab]) refresh(tab);
        }, 50);
    }

    function changed(tab) {
        clearTimeout(timers[tab]);
        timers[tab] = setTimeout(() => refresh(tab), REST);
    }

    // A run's end shows in its tab's pictures and texts.
    function result(tab) {
        const picture = gradioApp().querySelector(`#${tab}_gallery img`);
        const texts = ["html_info_", "html_log_"].map((id) => gradioApp().querySelector(`#${id}${tab}`)?.textContent);
        return JSON.stringify([picture?.src, ...texts]);
    }

    // Where Gradio's accordions are no buttons, ours shall open by keyboard all the same.
    function reachable(accordion) {
        const head = accordion.querySelector(".label-wrap");
        if (!head || head.tagName === "BUTTON" || head.tabIndex >= 0) return;
        head.tabIndex = 0;
        head.setAttribute("role", "button");
        head.addEventListener("keydown", (event) => {
            if (event.target !== head || (event.key !== "Enter" && event.key !== " ")) return;
            event.preventDefault();
            head.click();
        });
    }

    function all() {
        TABS.forEach(changed); // the last run is the same in all tabs
    }

    window.deepcacheChanged = changed;
    window.deepcacheGenerate = (tab) => gradioApp().querySelector(`#${tab}_generate`)?.click();
    onAfterUiUpdate(function() {
        gradioApp().querySelectorAll(".deepcache-inner").forEach(reachable);
        for (const tab of TABS) {
            if (!button(tab)) continue;
            const now = result(tab);
            if (seen[tab] === now) continue;
            seen[tab] = now;
            all();
        }
    });
    // Another window, or a script, may have made a picture meanwhile.
    document.addEventListener("visibilitychange", () => { if (!document.hidden) all(); });
    window.addEventListener("focus", all);
})();
