// Draws the charts, again when the colour scheme changes and for print; colours are the style sheet's variables.
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const root = document.documentElement;
  const PRINT_WIDTH = 680;

  const fill = (value, css) => {
    if (typeof value === "string") return value.replace(/^var\((--[\w-]+)\)$/, (_, name) => css.getPropertyValue(name).trim());
    if (Array.isArray(value)) return value.map((entry) => fill(entry, css));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, fill(v, css)]));
    return value;
  };

  const drawAll = (width) => {
    const css = getComputedStyle(root);
    const touch = matchMedia("(pointer: coarse)").matches;
    for (const [name, plot] of Object.entries(plots)) {
      const { data, layout } = fill(plot, css);
      const place = document.getElementById(name);
      if ((width || place.clientWidth) < 480) layout.font.size = 12;
      if (touch) layout.dragmode = false; // dragging scrolls the page
      if (width) layout.width = width;
      Plotly.react(place, data, layout, { responsive: !width, displayModeBar: false, scrollZoom: false, doubleClick: "reset" });
    }
  };

  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => { root.dataset.print = ""; drawAll(PRINT_WIDTH); });
  addEventListener("afterprint", () => { delete root.dataset.print; drawAll(); });
})();
