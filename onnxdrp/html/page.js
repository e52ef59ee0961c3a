"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");

  // Light or dark: as the system has it, until somebody says otherwise.
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();

  // Tables: a click on a head sorts, another one turns the order; what has no figure stands last.
  const texts = new Intl.Collator(undefined, { numeric: true });
  const key = (row, column) => {
    const cell = row.cells[column];
    const order = cell.dataset.order;
    if (order === undefined) return cell.textContent.trim() || null;
    return order === "" ? null : Number(order);
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : texts.compare(a, b));
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
        const rows = [...body.rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) =>
          a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b));
        body.append(...rows.map(([, row]) => row));
      });
    });
    const search = table.closest(".scroll").previousElementSibling;
    if (!search?.matches(".search")) continue;
    const field = search.querySelector("input");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      const all = body.rows.length;
      search.querySelector("output").value = `${shown.toLocaleString("en")} of ${all.toLocaleString("en")}`;
    });
  }

  // Charts: what is pointed at says what it is; arrow keys walk along.
  const tip = document.getElementById("tip");
  const hide = () => {
    tip.hidden = true;
    for (const mark of document.querySelectorAll(".here")) mark.classList.remove("here");
  };
  const show = (mark, x, y) => {
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, y - tip.offsetHeight - 10)}px`;
  };
  for (const chart of document.querySelectorAll(".chart")) {
    const marks = [...chart.querySelectorAll("[data-tip]")];
    let at = -1;
    chart.addEventListener("pointermove", (event) => {
      const mark = event.target.closest("[data-tip]");
      if (mark) show(mark, event.clientX, event.clientY); else hide();
    });
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step || !marks.length) return;
      event.preventDefault();
      at = (at + step + marks.length) % marks.length;
      hide();
      marks[at].classList.add("here");
      const box = marks[at].getBoundingClientRect();
      show(marks[at], box.left + box.width / 2, box.top);
    });
  }
  // A row that a chart leads to is shown, even if a search hides it.
  addEventListener("hashchange", () => {
    const row = document.getElementById(location.hash.slice(1));
    if (row?.hidden) { row.hidden = false; row.scrollIntoView(); }
  });
  // On paper everything is unfolded.
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
