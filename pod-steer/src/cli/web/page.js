// Puts the parts that the server sends in their places, and remembers the theme. Without it, the page shows the state at its loading.
"use strict";
(() => {
  const EVENTS_MAX = 50;
  // As long as the browser waits after a lost connection.
  const RETRY_MS = 2000;
  const by = (id) => document.getElementById(id);
  const root = document.documentElement;

  const toggle = by("theme");
  const themes = ["system", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const use = (theme) => {
    root.dataset.theme = theme;
    if (toggle) toggle.textContent = `Theme: ${theme}`;
    try { localStorage.setItem("theme", theme); } catch { /* It lasts for this page. */ }
  };
  use(themes.includes(stored()) ? stored() : "system");
  if (toggle) {
    toggle.hidden = false;
    toggle.addEventListener("click", () => use(themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length]));
  }
  const log = by("log");
  if (!log) return;

  // Forms are not replaced while the focus is in them.
  const held = new Map();
  const put = (id, html) => {
    const place = by(id);
    if (!place) return;
    const focus = document.activeElement;
    const has = focus && place.contains(focus);
    if (has && "hold" in place.dataset) { held.set(id, html); return; }
    const open = [...place.querySelectorAll("details[open]")].map((details) => details.id);
    place.innerHTML = html;
    open.forEach((details) => by(details)?.setAttribute("open", ""));
    if (has) (by(focus.id) || place.querySelector(`#${CSS.escape(focus.closest("details")?.id || "-")} > summary`) || by("main")).focus({ preventScroll: true });
  };
  document.addEventListener("focusout", () => setTimeout(() => {
    const waiting = [...held];
    held.clear();
    waiting.forEach(([id, html]) => put(id, html));
  }));

  const lost = by("lost");
  const query = new URLSearchParams(location.search);
  query.set("seen", document.body.dataset.seen);
  query.set("shown", document.body.dataset.shown);
  let since = "";
  const warn = (why) => {
    if (lost.hidden) since = new Date().toISOString().slice(11, 19);
    const text = `No updates since ${since} UTC: ${why}. Steering goes on in the kernel.`;
    if (lost.hidden || lost.textContent !== text) lost.textContent = text;
    lost.hidden = false;
  };

  // Updates that wait while the reader holds the page: the last of each part, in the order of their arrival, and the last events.
  const parts = new Map();
  let events = [];
  const hold = by("hold");
  const isHeld = () => hold.getAttribute("aria-pressed") === "true";
  const show = () => {
    const list = by("events");
    parts.forEach((html, id) => put(id, html));
    events.forEach((html) => {
      by("no-events")?.remove();
      list.insertAdjacentHTML("afterbegin", html);
    });
    while (list.children.length > EVENTS_MAX) list.lastElementChild.remove();
    parts.clear();
    events = [];
  };
  const updated = (message) => {
    query.set("seen", message.lastEventId);
    // Which services are shown may change while there is no stream.
    query.delete("shown");
    const update = JSON.parse(message.data);
    update.parts.forEach(([id, html]) => { parts.delete(id); parts.set(id, html); });
    events = [...events, ...update.events].slice(-EVENTS_MAX);
    if (!isHeld()) show();
    root.dataset.updates = Number(root.dataset.updates || 0) + 1;
  };
  hold.hidden = false;
  hold.addEventListener("click", () => {
    hold.setAttribute("aria-pressed", String(!isHeld()));
    if (!isHeld()) show();
  });

  // A browser has six connections to a server. So a page that is not seen gives its own back, and later goes on after the last event.
  let source;
  let again;
  const close = () => {
    clearTimeout(again);
    source?.close();
    source = undefined;
  };
  const open = () => {
    close();
    if (document.hidden) return;
    const own = source = new EventSource(`updates?${query}`);
    own.addEventListener("open", () => { lost.hidden = true; });
    own.addEventListener("update", updated);
    own.addEventListener("error", async () => {
      // The browser tries again, unless it was refused; the status says why.
      if (own.readyState !== EventSource.CLOSED) return warn("pod-steer web has ended or cannot be reached");
      const answer = await fetch(`updates?${query}`, { method: "HEAD" }).catch(() => undefined);
      if (own !== source) return;
      if (answer && !answer.ok && answer.status !== 503) {
        return warn("start pod-steer web again, and open its new address");
      }
      if (!answer?.ok) warn(answer ? "too many pages are open; close some" : "pod-steer web has ended or cannot be reached");
      again = setTimeout(open, RETRY_MS);
    });
  };
  document.addEventListener("visibilitychange", () => document.hidden ? close() : open());
  open();
})();
