"use strict";
(() => {
  const view = document.querySelector("[data-graph]");
  if (!view) return;
  const { items, links, legends } = JSON.parse(view.dataset.graph);
  const [sheet, chosen, swatches] = ["sheet", "chosen", "swatches"].map((name) => view.querySelector(`.${name}`));
  const SVG = sheet.firstChild.namespaceURI;
  const LETTER = 6.7, HIGH = 52, RISE = 34, GAP = 16, MOST = 250;

  // -------------------------------------------------------------------------------------- layout
  // Sugiyama, Tagawa, Toda (1981): nodes in ranks, long links through dummies, ranks in the order of
  // barycenters; then places as near to their neighbours as gaps allow.

  // Links, of which those that close a cycle are turned round.
  const acyclic = (count, pairs) => {
    const out = Array.from({ length: count }, () => []);
    pairs.forEach(([a], i) => out[a].push(i));
    const state = new Uint8Array(count), turned = pairs.map((pair) => [...pair]);
    for (let start = 0; start < count; start++) {
      if (state[start]) continue;
      const stack = [[start, 0]];
      state[start] = 1;
      while (stack.length) {
        const top = stack.at(-1), link = out[top[0]][top[1]++];
        if (link === undefined) { state[top[0]] = 2; stack.pop(); continue; }
        const to = pairs[link][1];
        if (state[to] === 1) turned[link].reverse();
        else if (!state[to]) { state[to] = 1; stack.push([to, 0]); }
      }
    }
    return turned;
  };

  // Longest paths from above; then what is given late moves down to where it is taken.
  const ranked = (count, pairs) => {
    const into = new Array(count).fill(0), out = Array.from({ length: count }, () => []);
    for (const [a, b] of pairs) { out[a].push(b); into[b]++; }
    const has = into.slice(), rank = new Array(count).fill(0);
    const order = [...into.keys()].filter((v) => !into[v]);
    for (const v of order) for (const w of out[v]) {
      rank[w] = Math.max(rank[w], rank[v] + 1);
      if (!--into[w]) order.push(w);
    }
    for (const v of order.reverse())
      if (!has[v] && out[v].length) rank[v] = Math.min(...out[v].map((w) => rank[w])) - 1;
    return rank;
  };

  // The places nearest to what each in a row wishes, least squares, with gaps: pool adjacent violators.
  const settle = (row, wide, wish, x) => {
    const blocks = [];
    let offset = 0;
    row.forEach((v, i) => {
      if (i) offset += (wide[row[i - 1]] + wide[v]) / 2 + GAP;
      let block = { sum: wish(v) - offset, count: 1, offsets: [offset] };
      while (blocks.length && blocks.at(-1).sum / blocks.at(-1).count > block.sum / block.count) {
        const before = blocks.pop();
        block = { sum: before.sum + block.sum, count: before.count + block.count,
                  offsets: before.offsets.concat(block.offsets) };
      }
      blocks.push(block);
    });
    let i = 0;
    for (const { sum, count, offsets } of blocks)
      for (const o of offsets) x[row[i++]] = sum / count + o;
  };

  const place = (widths, pairs) => {
    const rank = ranked(widths.length, acyclic(widths.length, pairs));
    const wide = [...widths], up = [], down = [];
    const join = (a, b) => { (down[a] ??= []).push(b); (up[b] ??= []).push(a); };
    const ways = pairs.map(([a, b]) => {
      const step = Math.sign(rank[b] - rank[a]), way = [a];
      for (let r = rank[a] + step; r !== rank[b]; r += step) {
        way.push(wide.length);
        rank.push(r);
        wide.push(2);
      }
      way.push(b);
      for (let i = 1; i < way.length; i++)
        if (step > 0) join(way[i - 1], way[i]); else join(way[i], way[i - 1]);
      return way;
    });
    const rows = [];
    rank.forEach((r, v) => (rows[r] ??= []).push(v));
    const mean = (values, of) => values.reduce((sum, v) => sum + of(v), 0) / values.length;
    const at = [];
    for (const row of rows) row.forEach((v, i) => { at[v] = i; });
    for (let sweep = 0; sweep < 12; sweep++) {
      const beside = sweep % 2 ? down : up;
      for (const row of sweep % 2 ? rows.toReversed() : rows) {
        const wish = new Map(row.map((v) => [v, beside[v] ? mean(beside[v], (w) => at[w]) : at[v]]));
        row.sort((a, b) => wish.get(a) - wish.get(b));
        row.forEach((v, i) => { at[v] = i; });
      }
    }
    const x = [];
    for (const row of rows) settle(row, wide, () => 0, x);
    for (let sweep = 0; sweep < 10; sweep++) {
      const beside = sweep % 2 ? down : up;
      for (const row of sweep % 2 ? rows.toReversed() : rows)
        settle(row, wide, (v) => (beside[v] ? mean(beside[v], (w) => x[w]) : x[v]), x);
    }
    const left = Math.min(...x.map((c, v) => c - wide[v] / 2)) - GAP;
    const places = x.map((c, v) => [c - left, GAP + HIGH / 2 + rank[v] * (HIGH + RISE)]);
    const width = Math.max(...places.map(([c], v) => c + wide[v] / 2)) + GAP;
    return { width, height: 2 * GAP + rows.length * (HIGH + RISE) - RISE, places, ways, rank };
  };

  // --------------------------------------------------------------------------------------- drawing
  const made = (name, attributes = {}, text = "") => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    return node;
  };
  const short = (text, most = 26) =>
    text.length > most ? `${text.slice(0, most / 2 - 2)}…${text.slice(1 - most / 2)}` : text;
  const tail = (name) => short(name.split("/").filter(Boolean).slice(-2).join("/") || name);
  const lines = ({ kind, op, name, count }) =>
    kind === "scope" ? [tail(name), `${count} nodes`] : kind === "node" ? [short(op), tail(name)] : [kind, tail(name)];
  const by = () => view.querySelector("input:checked")?.value;
  const label = (i) => {
    const { kind, op, name, count, said, layer } = items[i];
    const what = kind === "scope" ? `Scope ${name}, ${count} nodes` : `${op ?? kind} ${name}`;
    const beside = [[taken, "from"], [given, "to"]].map(([table, word]) =>
      table.get(i)?.length ? `; ${word} ${table.get(i).slice(0, 4).map((j) => items[j].op ?? tail(items[j].name)).join(", ")}` : "");
    return [what, said[by()]?.[1], layer && `layer ${layer}`].filter(Boolean).join(", ") + beside.join("");
  };

  const open = new Set([...items.keys()].filter((i) => items[i].open));
  const parents = (i) => { const found = []; for (let p = items[i].parent; p >= 0; p = items[p].parent) found.push(p); return found; };
  const box = (i) => [i, ...parents(i)].findLast((p) => !open.has(p));  // the outermost that is closed
  let zoom = 1, boxes = new Map(), ranks = new Map(), size = [0, 0], at = -1;
  let given = new Map(), taken = new Map();

  const draw = () => {
    const shown = [...new Set([...items.keys()].filter((i) => !items[i].parts).map(box))];
    const index = new Map(shown.map((i, n) => [i, n]));
    const seen = new Set(), pairs = [];
    [given, taken, boxes, ranks] = [new Map(), new Map(), new Map(), new Map()];
    for (const [a, b] of links) {
      const [from, to] = [box(a), box(b)];
      if (from === to || seen.has(`${from} ${to}`)) continue;
      seen.add(`${from} ${to}`);
      pairs.push([index.get(from), index.get(to)]);
      given.set(from, [...(given.get(from) ?? []), to]);
      taken.set(to, [...(taken.get(to) ?? []), from]);
    }
    const widths = shown.map((i) => Math.max(104, LETTER * 1.1 * Math.max(...lines(items[i]).map((l) => l.length)) + 16));
    const { width, height, places, ways, rank } = place(widths, pairs);
    size = [width, height];
    const svg = made("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `The graph in ${shown.length} boxes` });
    const head = made("marker", { id: "tip-of-link", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" });
    head.append(made("path", { d: "M0 0L8 4L0 8z" }));
    svg.append(head);
    for (const way of ways) {
      const down = rank[way.at(-1)] > rank[way[0]] ? 1 : -1;
      let path = "";
      way.forEach((v, i) => {
        const [x, y] = places[v];
        const [into, out] = [y - down * HIGH / 2, y + down * HIGH / 2];
        if (i) {
          const [px, py] = places[way[i - 1]], from = py + down * HIGH / 2, middle = (from + into) / 2;
          path += `C${px.toFixed(1)} ${middle} ${x.toFixed(1)} ${middle} ${x.toFixed(1)} ${into}`;
        }
        if (i < way.length - 1) path += i ? `V${out}` : `M${x.toFixed(1)} ${out}`;
      });
      svg.append(made("path", { d: path, class: "link", "marker-end": "url(#tip-of-link)" }));
    }
    shown.forEach((i, n) => {
      const { kind } = items[i], [x, y] = places[n];
      const group = made("g", { class: kind, role: "button", tabindex: -1, "data-item": i, transform: `translate(${x.toFixed(1)} ${y})` });
      if (items[i].parts) group.setAttribute("aria-expanded", "false");
      group.append(made("rect", { x: -widths[n] / 2, y: -HIGH / 2, width: widths[n], height: HIGH, rx: kind === "scope" || kind === "node" ? 5 : HIGH / 2 }));
      lines(items[i]).forEach((line, l) => group.append(made("text", { y: -15 + 15 * l, class: l ? "" : "name" }, line)));
      group.append(made("text", { y: 15, class: "figure-text" }));
      boxes.set(i, group);
      ranks.set(i, [rank[n], x]);
      svg.append(group);
    });
    sheet.replaceChildren(svg);
    colour();
    scale();
  };

  const scale = () => { sheet.firstChild.style.width = `${zoom * size[0]}px`; };
  const colour = () => {
    for (const [i, group] of boxes) {
      const said = items[i].said[by()];
      group.classList.toggle("said", Boolean(said));
      if (said) group.firstChild.setAttribute("fill", said[0]); else group.firstChild.removeAttribute("fill");
      group.querySelector(".figure-text").textContent = said?.[1] ?? "";
      group.setAttribute("aria-label", label(i));
    }
    const [title, legend] = legends[by()] ?? ["", []];
    swatches.replaceChildren(...(title ? [[null, `${title}:`], ...legend] : []).map(([fill, words]) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      if (fill) { swatch.style.background = fill; item.append(swatch); }
      item.append(words);
      return item;
    }));
  };

  // ------------------------------------------------------------------------------------- choosing
  const choose = (i, focus = true) => {
    boxes.get(at)?.setAttribute("tabindex", -1);
    for (const other of boxes.values()) other.classList.remove("here");
    at = i;
    const group = boxes.get(i), { layer } = items[i];
    group.setAttribute("tabindex", 0);
    group.classList.add("here");
    const parts = [document.createElement("p")];
    parts[0].textContent = label(i);
    if (layer) {
      const link = document.createElement("a");
      link.href = `#layer-${layer}`;
      link.textContent = `Layer ${layer} in the table`;
      parts.push(link);
    }
    for (const scope of parents(i)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `Close ${items[scope].name}`;
      button.addEventListener("click", () => close(scope));
      parts.push(button);
    }
    chosen.replaceChildren(...parts);
    if (focus) { group.focus({ preventScroll: true }); group.scrollIntoView({ block: "nearest", inline: "nearest" }); }
  };
  const close = (scope) => {
    for (const i of [...open]) if (i === scope || parents(i).includes(scope)) open.delete(i);
    draw();
    choose(scope);
  };
  const act = (i) => {
    if (!items[i].parts) return choose(i);
    open.add(i);
    draw();
    choose([...boxes.keys()].find((j) => items[j].parent === i));
  };
  const go = (i, key) => {
    const [rank, x] = ranks.get(i);
    const beside = [...ranks].filter(([j, [r, c]]) => r === rank && j !== i && (key === "ArrowLeft" ? c < x : c > x));
    const to = { ArrowDown: given.get(i)?.[0], ArrowUp: taken.get(i)?.[0] }[key]
      ?? beside.sort(([, [, a]], [, [, b]]) => Math.abs(a - x) - Math.abs(b - x))[0]?.[0];
    const sideways = key === "ArrowLeft" || key === "ArrowRight";
    if (to !== undefined && (sideways || given.get(i)?.includes(to) || taken.get(i)?.includes(to))) choose(to);
  };
  const own = (event) => { const group = event.target.closest("[data-item]"); return group && Number(group.dataset.item); };
  sheet.addEventListener("click", (event) => { const i = own(event); if (i !== null) act(i); });
  sheet.addEventListener("keydown", (event) => {
    const i = own(event);
    if (i === null || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key.startsWith("Arrow")) go(i, event.key);
    else if (event.key === "Enter" || event.key === " ") act(i);
    else if (event.key === "Backspace" && items[i].parent >= 0) close(items[i].parent);
    else return;
    event.preventDefault();
  });
  view.addEventListener("change", () => { colour(); if (at >= 0) choose(at, false); });

  // All scopes of a level, as long as there is room.
  const more = () => {
    let count = boxes.size;
    for (const i of [...boxes.keys()].filter((j) => items[j].parts))
      if (count + items[i].parts - 1 <= MOST) { open.add(i); count += items[i].parts - 1; }
  };
  const doing = {
    open: () => { more(); draw(); }, close: () => { open.clear(); draw(); },
    in: () => { zoom *= 1.25; scale(); }, out: () => { zoom /= 1.25; scale(); },
  };
  for (const button of view.querySelectorAll("[data-do]"))
    button.addEventListener("click", () => {
      doing[button.dataset.do]();
      if (!boxes.has(at)) choose([...boxes.keys()][0], false);
    });

  // From the table of layers to the graph.
  const first = new Map();
  items.forEach(({ layer }, i) => { if (layer && !first.has(layer)) first.set(layer, i); });
  for (const [layer, i] of first) {
    const cell = document.getElementById(`layer-${layer}`)?.cells[0];
    if (!cell) continue;
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "where", title: "Show in the graph", textContent: cell.textContent });
    button.setAttribute("aria-label", `Layer ${layer}, show in the graph`);
    button.addEventListener("click", () => {
      for (const scope of parents(i)) open.add(scope);
      draw();
      choose(i);
      boxes.get(i).scrollIntoView({ block: "center", inline: "center" });
    });
    cell.replaceChildren(button);
  }
  draw();
  choose([...boxes.keys()][0], false);
})();
