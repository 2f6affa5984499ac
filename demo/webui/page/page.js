// What extensions' scripts expect of the host's page, and the progress bar.

function gradioApp() {
    const app = document.querySelector("gradio-app");
    return app ? app.shadowRoot || app : document;
}

const uiCallbacks = { loaded: [], update: [], afterUpdate: [], tabChange: [], options: [] };
function onUiLoaded(callback) { uiCallbacks.loaded.push(callback); }
function onUiUpdate(callback) { uiCallbacks.update.push(callback); }
function onAfterUiUpdate(callback) { uiCallbacks.afterUpdate.push(callback); }
function onUiTabChange(callback) { uiCallbacks.tabChange.push(callback); }
function onOptionsChanged(callback) { uiCallbacks.options.push(callback); }

function callAll(callbacks, argument) {
    for (const callback of callbacks) {
        try { callback(argument); } catch (error) { console.error("error running callback", callback, error); }
    }
}

function updateInput(target) {
    target.dispatchEvent(new Event("input", { bubbles: true }));
}

let uiIsLoaded = false;
let afterUpdate = null;
document.addEventListener("DOMContentLoaded", () => {
    new MutationObserver((mutations) => {
        if (!uiIsLoaded && gradioApp().querySelector("#txt2img_prompt")) {
            uiIsLoaded = true;
            gradioApp().querySelectorAll(".input-accordion").forEach(setupAccordion);
            callAll(uiCallbacks.loaded);
        }
        callAll(uiCallbacks.update, mutations);
        clearTimeout(afterUpdate);
        afterUpdate = setTimeout(() => callAll(uiCallbacks.afterUpdate), 200);
    }).observe(gradioApp(), { childList: true, subtree: true });
});

// InputAccordion: a checkbox in the accordion's head, in step with the hidden one that Gradio knows.

function accordionParts(id) {
    const accordion = gradioApp().querySelector(`#${id}`);
    return {
        accordion,
        head: accordion.querySelector(".label-wrap"),
        shown: accordion.querySelector(".input-accordion-checkbox"),
        hidden: gradioApp().querySelector(`#${id}-checkbox input`),
    };
}

function setupAccordion(accordion) {
    if (accordion.querySelector(".input-accordion-checkbox")) return;
    const id = accordion.id;
    const { head, hidden } = accordionParts(id);
    const shown = document.createElement("input");
    shown.type = "checkbox";
    shown.className = "input-accordion-checkbox";
    shown.id = `${id}-visible-checkbox`;
    shown.checked = hidden.checked;
    head.insertBefore(shown, head.firstChild);
    const extra = gradioApp().querySelector(`#${id}-extra`);
    if (extra) head.insertBefore(extra, head.lastElementChild);
    shown.addEventListener("click", (event) => {
        event.stopPropagation();
        inputAccordionChecked(id, shown.checked);
    });
    new MutationObserver(() => {
        const open = head.classList.contains("open");
        shown.checked = open;
        if (hidden.checked !== open) hidden.click();
    }).observe(head, { attributes: true, attributeFilter: ["class"] });
}

function inputAccordionChecked(id, checked) {
    const { head, shown, hidden } = accordionParts(id);
    if (shown) shown.checked = checked;
    if (hidden.checked !== checked) hidden.click();
    if (head.classList.contains("open") !== checked) head.click();
}

// Progress, asked for while a generation of this page runs.

const progressTimers = {};

function startProgress(tab) {
    endProgress(tab);
    const bar = document.createElement("div");
    bar.className = "progressDiv";
    bar.id = `${tab}_progress`;
    bar.innerHTML = "<div class='progress'></div>";
    gradioApp().querySelector(`#${tab}_results`).prepend(bar);
    const ask = async () => {
        let answer = null;
        try { answer = await (await fetch("internal/progress")).json(); } catch (error) { /* ask again */ }
        if (progressTimers[tab] === undefined) return;
        if (answer) {
            const percent = Math.round(answer.progress * 100);
            bar.firstChild.style.width = `${percent}%`;
            bar.firstChild.textContent = answer.state.job ? `${percent}%` : "Waiting...";
        }
        progressTimers[tab] = setTimeout(ask, 250);
    };
    progressTimers[tab] = setTimeout(ask, 0);
}

function endProgress(tab) {
    clearTimeout(progressTimers[tab]);
    delete progressTimers[tab];
    const bar = gradioApp().querySelector(`#${tab}_progress`);
    if (bar) bar.remove();
}
