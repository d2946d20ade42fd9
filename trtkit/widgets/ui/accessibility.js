// Roles, states and announcements that ipywidgets' buttons, bars and sliders lack (WAI-ARIA Authoring Practices).
const ANNOUNCE_MS = 5000;

function set(node, name, value) {
  if (node && node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function groupLabel(group) {
  let node = group;
  while (node && !(node = node.previousElementSibling)?.querySelector?.("h3, h4, h5")) {
    if (!node) return group.dataset.label ?? "Options";
  }
  return node.querySelector("h3, h4, h5").textContent;
}

function describeOptions(root) {
  for (const group of root.querySelectorAll(".trtkit-options")) {
    set(group, "role", "radiogroup");
    set(group, "aria-label", groupLabel(group));
    const options = [...group.querySelectorAll("button.trtkit-option")];
    const chosen = options.find((option) => option.classList.contains("mod-active"));
    for (const option of options) {
      set(option, "role", "radio");
      set(option, "aria-checked", String(option === chosen));
      option.removeAttribute("aria-pressed");
      // One stop for the Tab key; the arrow keys move inside.
      set(option, "tabindex", option === (chosen ?? options[0]) ? "0" : "-1");
    }
  }
}

function onKey(event) {
  const page = event.target.matches?.("input[type=text]") && event.target.closest(".trtkit-page");
  if (event.key === "Enter" && page) {
    // The widget sends what was typed with a delay, and the press at once.
    setTimeout(() => page.querySelector("button.mod-primary:not([disabled])")?.click(), 300);
    return;
  }
  const option = event.target.closest?.("button.trtkit-option");
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!option || !step) return;
  event.preventDefault();
  event.stopPropagation();
  const options = [...option.closest(".trtkit-options").querySelectorAll("button.trtkit-option:not([disabled])")];
  const next = options[(options.indexOf(option) + step + options.length) % options.length];
  next.focus();
  if (!next.classList.contains("mod-active")) next.click();
}

function describeControls(root) {
  for (const steps of root.querySelectorAll(".trtkit-steps")) {
    set(steps, "role", "group");
    set(steps, "aria-label", "Steps");
    for (const button of steps.querySelectorAll("button")) {
      if (button.classList.contains("trtkit-current")) set(button, "aria-current", "step");
      else button.removeAttribute("aria-current");
    }
  }
  for (const toggle of root.querySelectorAll("button.widget-toggle-button, button.jupyter-widget-toggle-button")) {
    const on = String(toggle.classList.contains("mod-active"));
    if (toggle.classList.contains("trtkit-collapsible")) set(toggle, "aria-expanded", on);
    else if (!toggle.classList.contains("trtkit-option")) set(toggle, "aria-pressed", on);
  }
  for (const bar of root.querySelectorAll(".trtkit-bar .progress")) {
    const done = parseFloat(bar.querySelector(".progress-bar")?.style.width) || 0;
    set(bar, "role", "progressbar");
    set(bar, "aria-label", "Progress of this stage");
    set(bar, "aria-valuemin", "0");
    set(bar, "aria-valuemax", "100");
    set(bar, "aria-valuenow", String(Math.round(done)));
  }
  for (const handle of root.querySelectorAll("[role=slider]")) {
    const label = handle.closest(".widget-slider, .jupyter-widget-slider")?.querySelector(".widget-label, label");
    if (label?.textContent) set(handle, "aria-label", label.textContent);
  }
  for (const box of root.querySelectorAll(".trtkit-error")) set(box, "role", "alert");
  for (const box of root.querySelectorAll("pre, .trtkit-scroll, .trtkit-table")) {
    // What scrolls must be reachable by keyboard.
    if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1) set(box, "tabindex", "0");
  }
}

function render({ el }) {
  const live = document.createElement("div");
  live.setAttribute("role", "status");
  live.style.cssText = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)";
  el.appendChild(live);
  let root, observer, frame = 0, said = "", saidAt = 0, timer = 0;

  // The stage changes ten times a second: a screen reader gets its ends at once, the rest every few seconds.
  const announce = () => {
    const stages = [...root.querySelectorAll(".trtkit-stage")].filter((node) => node.offsetParent);
    const text = stages.map((node) => node.textContent.trim()).filter(Boolean).join(". ");
    if (!text || text === said) return;
    const ended = /^(✓|✕|Cancelled)/.test(stages.at(-1).textContent.trim());
    clearTimeout(timer);
    if (!ended && Date.now() - saidAt < ANNOUNCE_MS) {
      timer = setTimeout(announce, ANNOUNCE_MS);
      return;
    }
    live.textContent = said = text;
    saidAt = Date.now();
    if (ended && (document.activeElement === document.body || !document.activeElement)) {
      // The pressed button is disabled or gone: reading goes on at the result, not at the page's start.
      const stage = stages.at(-1);
      stage.tabIndex = -1;
      stage.focus({ preventScroll: true });
    }
  };
  const update = () => {
    frame = 0;
    describeOptions(root);
    describeControls(root);
    announce();
  };
  const schedule = () => { frame ||= requestAnimationFrame(update); };
  const start = () => {
    root = el.closest(".trtkit");
    if (!root) return;
    root.addEventListener("keydown", onKey, true);
    observer = new MutationObserver(schedule);
    const attributeFilter = ["class", "style", "disabled"];
    observer.observe(root, { attributes: true, attributeFilter, childList: true, subtree: true, characterData: true });
    schedule();
  };
  // The element is put into the page after this function.
  const wait = setInterval(() => { if (el.isConnected) { clearInterval(wait); start(); } }, 50);
  return () => {
    clearInterval(wait);
    clearTimeout(timer);
    observer?.disconnect();
    root?.removeEventListener("keydown", onKey, true);
  };
}

export default { render };
