"use strict";
// Two things need a script: hits while somebody types, and the map. Everything else works without.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// ---- hits while somebody types: a combobox with a list

function live(box, number) {
  const input = box.querySelector("input");
  const list = element("ul", { class: "hits", role: "listbox", id: `hits${number}`, "aria-label": "Found" });
  const said = element("div", { class: "hidden", role: "status" });
  let hits = [], at = -1, timer = 0, asking = null;
  list.hidden = true;
  box.append(list, said);
  for (const [key, value] of Object.entries({ role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": list.id }))
    input.setAttribute(key, value);

  const close = () => { list.hidden = true; at = -1; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); };
  const choose = (hit) => {
    if (!box.hasAttribute("data-pick")) { location.assign(hit.url); return; }
    input.value = hit.id;
    close();
    input.form.requestSubmit();
  };
  const mark = (next) => {
    at = (next + hits.length) % hits.length;
    [...list.children].forEach((line, i) => line.setAttribute("aria-selected", String(i === at)));
    list.children[at].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", list.children[at].id);
  };
  const show = (found) => {
    hits = found;
    at = -1;
    list.replaceChildren(...hits.map((hit, i) => {
      const line = element("li", { role: "option", id: `${list.id}-${i}`, "aria-selected": "false" }, hit.title);
      if (hit.about) line.append(element("span", { class: "about" }, hit.about));
      line.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
      line.addEventListener("click", () => choose(hit));
      return line;
    }));
    if (!hits.length) list.append(element("li", { class: "none" }, "Nothing found"));
    said.textContent = hits.length ? `${hits.length} found` : "Nothing found";
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
  };
  const ask = async () => {
    asking?.abort();
    const text = input.value.trim();
    if (!text) { close(); return; }
    asking = new AbortController();
    try {
      const url = box.dataset.live;
      const answer = await fetch(`${url}${url.includes("?") ? "&" : "?"}q=${encodeURIComponent(text)}`, { signal: asking.signal });
      if (answer.ok && document.activeElement === input) show((await answer.json()).hits);
    } catch (error) {
      if (error.name !== "AbortError") close(); // the form still works
    }
  };
  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 150); });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !list.hidden) { event.preventDefault(); close(); }
    if (list.hidden || !hits.length) return;
    if (event.key === "ArrowDown") { event.preventDefault(); mark(at + 1); }
    if (event.key === "ArrowUp") { event.preventDefault(); mark(at < 0 ? hits.length - 1 : at - 1); }
    if (event.key === "Enter" && at >= 0) { event.preventDefault(); choose(hits[at]); }
  });
}

// ---- the map

class ItemMap {
  constructor(box, data) {
    this.box = box;
    this.data = data;
    this.large = box.hasAttribute("data-large");
    this.canvas = element("canvas", { tabindex: "0", role: "img", "aria-label": `Map of ${data.x.length} items. ${this.large ? "Arrow keys move, plus and minus zoom, Enter opens the item nearest to the middle." : ""}` });
    this.tip = element("div", { class: "tip" });
    this.tip.hidden = true;
    this.told = element("div", { class: "told", role: "status" });
    box.replaceChildren(this.canvas, this.buttons(), this.tip, this.told);
    if (data.names && data.names.length > 1) box.append(this.legend());
    this.view = { x: 0.5, y: 0.5, zoom: 1 };
    this.hover = -1;
    this.fingers = new Map();
    this.restore();
    this.listen();
    this.paints();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.paints(); this.draw(); });
    this.say(data.focus ? data.focus.at : -1);
  }

  buttons() {
    const made = element("div", { class: "zoom" });
    for (const [sign, name, factor] of [["+", "Zoom in", 1.5], ["−", "Zoom out", 1 / 1.5], ["⤢", "The whole map", 0]]) {
      const button = element("button", { type: "button", "aria-label": name, title: name }, sign);
      button.addEventListener("click", () => this.zoom(factor));
      made.append(button);
    }
    return made;
  }

  legend() {
    const counts = this.data.names.map((_, group) => this.data.groups.filter((g) => g === group).length);
    return element("ul", { class: "legend" }, ...this.data.names.map((name, group) => {
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      dot.setAttribute("viewBox", "0 0 10 10");
      dot.setAttribute("aria-hidden", "true");
      const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      for (const [key, value] of Object.entries({ cx: 5, cy: 5, r: 5, class: group === this.data.names.length - 1 ? "gothers" : `g${group}` }))
        circle.setAttribute(key, value);
      dot.append(circle);
      return element("li", {}, dot, `${name} ${counts[group]}`);
    }).filter((_, group) => counts[group]));
  }

  paints() {
    const style = getComputedStyle(document.documentElement);
    const named = (name) => style.getPropertyValue(name).trim();
    const groups = this.data.names ? this.data.names.length : 1;
    this.colors = Array.from({ length: groups }, (_, group) => named(this.data.names && group < groups - 1 ? `--map-${group}` : this.data.names ? "--map-others" : "--map-0"));
    this.ink = named("--ink");
    this.card = named("--card");
  }

  // where a point lies on the canvas, in CSS pixels
  place(i) {
    const side = Math.min(this.width, this.height) * 0.94 * this.view.zoom;
    return [(this.data.x[i] - this.view.x) * side + this.width / 2, (this.view.y - this.data.y[i]) * side + this.height / 2];
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const focus = this.data.focus ? this.data.focus.at : -1;
    const radius = Math.min(7, (this.large ? 2.6 : 1.9) * Math.sqrt(this.view.zoom));
    const order = [...this.data.x.keys()];
    if (this.data.groups) order.sort((a, b) => this.data.groups[b] - this.data.groups[a]); // the others below
    pen.globalAlpha = 0.8;
    for (const i of order) {
      const [x, y] = this.place(i);
      if (x < -9 || y < -9 || x > this.width + 9 || y > this.height + 9) continue;
      pen.fillStyle = this.colors[this.data.groups ? this.data.groups[i] : 0];
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
    for (const [i, size] of [[focus, 8], [this.hover, 6]]) {
      if (i < 0) continue;
      const [x, y] = this.place(i);
      pen.lineWidth = 5; pen.strokeStyle = this.card;
      pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.stroke();
      pen.lineWidth = 2.5; pen.strokeStyle = this.ink;
      pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.stroke();
    }
    this.drawn = true;
  }

  nearest(x, y, within) {
    let best = -1, least = within * within;
    for (let i = 0; i < this.data.x.length; i++) {
      const [px, py] = this.place(i);
      const away = (px - x) ** 2 + (py - y) ** 2;
      if (away < least) { best = i; least = away; }
    }
    return best;
  }

  say(i) {
    const { data } = this;
    if (i < 0) {
      const all = data.x.length === data.total;
      this.told.textContent = `${data.x.length.toLocaleString("en")}${all ? "" : ` of ${data.total.toLocaleString("en")}`} items by ${data.how}` + (all ? "." : ": those that training met most, and a sample of the others.");
      return;
    }
    const own = !data.focus || data.focus.at !== i || data.focus.own;
    const link = element("a", { href: data.urls[i] }, data.titles[i]);
    this.told.replaceChildren(...(own ? [link] : ["This item is not drawn; it would lie near ", link]), data.abouts[i] ? element("span", { class: "about" }, data.abouts[i]) : "");
  }

  point(i, x, y) {
    if (i !== this.hover) { this.hover = i; this.draw(); if (i >= 0) this.say(i); }
    this.tip.hidden = i < 0;
    this.canvas.classList.toggle("over", i >= 0);
    if (i < 0) return;
    this.tip.textContent = this.data.titles[i];
    const left = Math.max(6, Math.min(x + 14, this.width - this.tip.offsetWidth - 6));
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${y + 18 + this.tip.offsetHeight > this.height ? y - this.tip.offsetHeight - 10 : y + 16}px`;
  }

  move(dx, dy) {
    const side = Math.min(this.width, this.height) * 0.94 * this.view.zoom;
    this.view.x -= dx / side;
    this.view.y += dy / side;
    this.keep();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    if (!factor) { this.view = { x: 0.5, y: 0.5, zoom: 1 }; this.keep(); return; }
    const next = Math.min(60, Math.max(0.7, this.view.zoom * factor));
    const side = Math.min(this.width, this.height) * 0.94;
    this.view.x += ((x - this.width / 2) / side) * (1 / this.view.zoom - 1 / next);
    this.view.y -= ((y - this.height / 2) / side) * (1 / this.view.zoom - 1 / next);
    this.view.zoom = next;
    this.keep();
  }

  // the view stands in the address, so that a link to it can be shared
  keep() {
    this.draw();
    if (!this.large) return;
    clearTimeout(this.later);
    this.later = setTimeout(() => history.replaceState(null, "", `#${[this.view.x, this.view.y, this.view.zoom].map((v) => v.toFixed(3)).join(",")}`), 200);
  }

  restore() {
    const given = this.large ? location.hash.slice(1).split(",").map(Number) : [];
    if (given.length === 3 && given.every(Number.isFinite) && given[2] > 0) this.view = { x: given[0], y: given[1], zoom: Math.min(60, given[2]) };
  }

  listen() {
    const { canvas, fingers } = this;
    const where = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    let moved = 0, spread = 0;
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); fingers.set(event.pointerId, where(event)); moved = 0; spread = 0; });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = where(event);
      const last = fingers.get(event.pointerId);
      if (!last) { this.point(this.nearest(x, y, 12), x, y); return; }
      fingers.set(event.pointerId, [x, y]);
      const each = [...fingers.values()];
      if (each.length === 1) {
        moved += Math.abs(x - last[0]) + Math.abs(y - last[1]);
        if (moved > 4) { this.point(-1); this.move(x - last[0], y - last[1]); }
      } else if (each.length === 2) {
        const [[ax, ay], [bx, by]] = each;
        const wide = Math.hypot(ax - bx, ay - by);
        if (spread) this.zoom(wide / spread, (ax + bx) / 2, (ay + by) / 2);
        spread = wide;
        moved = 99;
      }
    });
    canvas.addEventListener("pointerup", (event) => {
      const [x, y] = where(event);
      fingers.delete(event.pointerId);
      spread = 0;
      if (moved > 4) return;
      const found = this.nearest(x, y, event.pointerType === "mouse" ? 12 : 24);
      if (event.pointerType === "mouse" && found >= 0) location.assign(this.data.urls[found]);
      else { this.point(found, x, y); this.say(found); } // a finger cannot point first: it gets a link below
    });
    canvas.addEventListener("pointercancel", (event) => { fingers.delete(event.pointerId); spread = 0; });
    canvas.addEventListener("pointerleave", () => { if (!fingers.size) this.point(-1); });
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(Math.exp(-event.deltaY / 400), ...where(event)); }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [50, 0], ArrowRight: [-50, 0], ArrowUp: [0, 50], ArrowDown: [0, -50] };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (steps[event.key]) this.move(...steps[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoom(1.5);
      else if (event.key === "-") this.zoom(1 / 1.5);
      else if (event.key === "0") this.zoom(0);
      else if (event.key === "Enter" && this.hover >= 0) { location.assign(this.data.urls[this.hover]); return; }
      else return;
      event.preventDefault();
      const middle = this.nearest(this.width / 2, this.height / 2, 1e9);
      if (middle >= 0) this.point(middle, ...this.place(middle));
    });
  }
}

async function map(box) {
  const told = element("p", { class: "soft", role: "status" }, "The map is being made …");
  box.replaceChildren(told);
  for (let wait = 500; ; wait = Math.min(4000, wait * 1.4)) {
    let data;
    try {
      const answer = await fetch(box.dataset.map);
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      data = await answer.json();
    } catch (error) {
      told.textContent = `The map cannot be loaded: ${error.message}. Load the page again.`;
      return;
    }
    if (data.state === "ready") { box.map = new ItemMap(box, data); return; }
    if (data.state === "failed") { told.textContent = `The map cannot be made: ${data.error}`; return; }
    told.textContent = "The map is being made. This happens once for a bundle, and may take a minute …";
    await new Promise((done) => setTimeout(done, wait));
  }
}

document.querySelectorAll("[data-live]").forEach(live);
document.querySelectorAll("[data-map]").forEach(map);
document.querySelectorAll("[data-submit]").forEach((field) => field.addEventListener("change", () => field.form.requestSubmit()));
