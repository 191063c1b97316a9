// The page's behaviour. Texts from the data enter as text, never as markup.
"use strict";
(async () => {
  const PER_SIDE = 24, PER_GROUP = 6, GROUPS = 8, NONE = -1;
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const data = (name) => $(`#data-${name}`)?.textContent;
  const number = (value) => value.toLocaleString("en");
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
  const compare = (a, b) => (a > b) - (a < b);
  const spaced = (word) => word.replaceAll("_", " ");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function make(tag, attributes = {}, ...children) {
    const { onclick, ...others } = attributes, element = document.createElement(tag);
    for (const [name, value] of Object.entries(others)) element.setAttribute(name, value);
    if (onclick) element.addEventListener("click", onclick);
    element.append(...children);
    return element;
  }
  const button = (text, onclick) => make("button", { type: "button", onclick }, text);
  const offer = (select, words) => select.append(...words.map(([value, text]) => make("option", { value }, text)));
  const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  async function unpack(text) {
    const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  // --- Tables, which need no pairs ------------------------------------------------------------
  for (const table of $$("table.sortable")) {
    const body = $("tbody", table), rows = [...body.rows], texts = rows.map((row) => row.textContent.toLowerCase());
    const valueAt = (row, column) => {
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      return text === "" || isNaN(text) ? text : Number(text);
    };
    $$("thead th:not(.plain)", table).forEach((head, column) => head.replaceChildren(button(head.textContent, () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      $$("[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sorted = rows.toSorted((p, q) => compare(valueAt(p, column), valueAt(q, column)));
      body.append(...(up ? sorted : sorted.reverse()));
    })));
    const words = make("input", { type: "search", placeholder: "terms, number, category",
      "aria-label": `Filter: ${table.caption.textContent}` }), found = make("span", { role: "status" });
    const filter = () => {
      rows.forEach((row, i) => { row.hidden = !texts[i].includes(words.value.toLowerCase()); });
      found.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
    };
    words.addEventListener("input", filter);
    table.parentElement.before(make("p", { class: "tools" }, words, found));
    filter();
  }
  if (!data("pairs")) return;

  // --- The pairs ------------------------------------------------------------------------------
  const meta = await unpack(data("meta"));
  const pairs = [], byNumber = new Map(), chunks = new Map(), waiting = {};
  const bits = Object.fromEntries(meta.keepers.map(([name], bit) => [name, bit]));
  const keeps = (pair, name) => (pair.keeps >> bits[name]) & 1;

  function add(columns) {
    for (const [name, words] of Object.entries(meta.words)) columns[name] = columns[name].map((code) => words[code]);
    const entries = Object.entries(columns);
    columns.number.forEach((n, row) => {
      if (byNumber.has(n)) return;
      const pair = {};
      for (const [name, column] of entries) pair[name] = column[row];
      pair.text = `${pair.caption}\n${pair.key}`.toLowerCase();
      pair.distance = pair.value === null ? null : Math.abs(pair.value - (meta.cut ?? pair.value));
      byNumber.set(n, pairs[pairs.push(pair) - 1]);
    });
  }
  add(await unpack(data("pairs")));

  function load(i) { // the file of a chunk, once
    if (!chunks.has(i)) chunks.set(i, new Promise((resolve) => {
      waiting[i] = async (text) => resolve(add(await unpack(text)));
      const script = make("script", { src: `report_files/pairs/${String(i).padStart(5, "0")}.js` });
      script.addEventListener("error", () => resolve());
      document.head.append(script);
    }));
    return chunks.get(i);
  }
  const pairOf = async (n) => (byNumber.has(n) || await load(Math.floor(n / meta.chunkSize)), byNumber.get(n));
  async function pairWithId(id) { // a skipped duplicate has the id of the pair that stayed
    const here = () => pairs.filter((pair) => pair.id.startsWith(id))
      .sort((p, q) => compare(p.decision === "skipped", q.decision === "skipped"))[0];
    const i = meta.chunks.findLastIndex((first) => first <= id);
    if (!here() && i >= 0) await load(i);
    return here();
  }

  // --- Photographs ----------------------------------------------------------------------------
  const photographs = bytesOf(data("photos") ?? ""), addresses = new Map();
  meta.photos.forEach((n, i) => addresses.set(n, [i ? meta.ends[i - 1] : 0, meta.ends[i]]));
  function photo(pair, alt = "") {
    const missing = (why) => make("span", { class: "photo" }, why), n = pair.photo;
    if (n === NONE) return missing("no photograph");
    let address = addresses.get(n) ?? `report_files/photographs/${Math.floor(n / 1000)}/${n}.avif`;
    if (Array.isArray(address)) { // not shown before
      address = URL.createObjectURL(new Blob([photographs.subarray(...address)], { type: meta.mime }));
      addresses.set(n, address);
    }
    const image = make("img", { class: "photo", src: address, alt, loading: "lazy" });
    image.addEventListener("error", () => image.replaceWith(missing("report_files is not here")));
    return image;
  }

  // --- Marks ----------------------------------------------------------------------------------
  const shelf = `influencespace ${meta.fingerprint}`;
  let marks = new Map(Object.entries(meta.marks)), shown = null; // the pair whose story is open
  try { marks = new Map(JSON.parse(localStorage.getItem(shelf)) ?? marks); } catch { /* none are kept */ }
  function mark(pair, what) {
    if (!["kept", "dropped"].includes(pair.decision)) return; // only training pairs can be marked
    if (what) marks.set(pair.id, what); else marks.delete(pair.id);
    showMarks();
  }
  const badge = (what) => (what ? [make("span", { class: "badge" }, what)] : []);
  function showMarks() {
    try { localStorage.setItem(shelf, JSON.stringify([...marks])); } catch { /* they last until the page goes */ }
    const n = (what) => [...marks.values()].filter((value) => value === what).length;
    $("#marks").textContent = `${n("keep")} marked keep, ${n("drop")} marked drop.`;
    for (const card of $$("[data-pair]")) {
      const what = marks.get(byNumber.get(Number(card.dataset.pair)).id);
      $(".badge", card)?.remove();
      card.append(...badge(what));
    }
    for (const choice of $$("[data-mark]")) {
      choice.setAttribute("aria-pressed", (marks.get(shown?.id) ?? "") === choice.dataset.mark);
      choice.disabled = !["kept", "dropped"].includes(shown?.decision);
    }
  }
  $("#download").addEventListener("click", async () => {
    const rows = ["id,decision,key,caption"]; // a spreadsheet would take some texts for formulas
    const cell = (text = "") => `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`;
    for (const [id, what] of marks) {
      const pair = await pairWithId(id);
      rows.push([id, what, cell(pair?.key), cell(pair?.caption)].join(","));
    }
    const href = URL.createObjectURL(new Blob([rows.join("\r\n") + "\r\n"], { type: "text/csv" }));
    make("a", { href, download: "overrides.csv" }).click();
  });
  $("#forget").addEventListener("click", () => { if (confirm("Forget all marks?")) marks.clear(); showMarks(); });

  // --- Which pairs are shown ------------------------------------------------------------------
  const form = $("#filters"), filters = {}; // the form's values, as strings
  let chosen = {}, listed = [], order = []; // what has no field: lasso, cell, marked; pairs shown; what arrows follow
  const words = (name) => meta.words[name].filter(Boolean).map((word) => [word, spaced(word)]);
  const choices = { split: words("split"), decision: words("decision"), reason: words("reason"),
    fault: words("fault"), cluster: meta.clusters, a: meta.keepers, b: meta.keepers };
  for (const [name, found] of Object.entries(choices)) {
    offer(form[name], found);
    form[name].closest("label").hidden = found.length === 0;
  }
  function look(view) { // another view, from the start
    for (const field of form.elements) field.value = { split: "train", sort: "value" }[field.name] ?? "";
    chosen = {};
    for (const [name, value] of Object.entries(view)) {
      if (name in form.elements) form[name].value = value; else chosen[name] = value;
    }
    render();
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { delete chosen.cell; render(); });
  document.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-view]");
    if (!choice) return;
    dialog.close();
    look(JSON.parse(choice.dataset.view));
    if (choice.closest("#views")) choice.ariaPressed = "true"; else $("#look").scrollIntoView();
  });

  function isShown(pair) {
    const { a, b } = filters, wanted = filters.search.toLowerCase().split(" ").filter(Boolean);
    const fits = (name) => !filters[name] || String(pair[name]) === filters[name];
    return ["split", "decision", "reason", "fault", "cluster"].every(fits)
      && (chosen.cell === undefined || String(pair.cell) === chosen.cell)
      && (!chosen.marked || marks.has(pair.id))
      && (!chosen.lasso || chosen.lasso.has(pair.number))
      && (filters.group !== "family" || pair.family !== NONE)
      && (a && b ? keeps(pair, a) !== keeps(pair, b) : (!a || keeps(pair, a)) && (!b || !keeps(pair, b)))
      && wanted.every((word) => pair.text.includes(word) || pair.id.startsWith(word));
  }
  function sidesOf(rows) {
    const { a, b } = filters, label = Object.fromEntries(meta.keepers);
    const parts = (title, other, is, ...looks) => [[title, rows.filter(is), looks[0]],
      [other, rows.filter((pair) => !is(pair)), looks[1]]];
    const only = (one, two) => `${label[one]} keeps, ${label[two]} does not`;
    if (a && b) return parts(only(a, b), only(b, a), (pair) => keeps(pair, a));
    if (filters.split && filters.split !== "train") return parts("Trusted", "Not trusted", (pair) => pair.trusted);
    const other = rows.every((pair) => ["kept", "dropped"].includes(pair.decision)) ? "Dropped" : "Not trained on";
    return parts("Kept", other, (pair) => pair.decision === "kept", "kept", "dropped");
  }
  function render() {
    Object.assign(filters, Object.fromEntries(new FormData(form)));
    for (const choice of $$("#views [aria-pressed=true]")) choice.setAttribute("aria-pressed", "false");
    const sign = filters.sort.endsWith("-") ? -1 : 1, by = filters.sort.replace("-", "");
    const inOrder = (p, q) => compare(p[by] === null, q[by] === null) || sign * compare(p[by], q[by]);
    listed = pairs.filter(isShown).sort(inOrder);
    const n = (word) => listed.filter((pair) => pair.decision === word).length;
    const counts = meta.words.decision.filter(n).map((word) => `${number(n(word))} ${word}`);
    const where = (chosen.cell === undefined ? "" : ` in cell ${chosen.cell}`) + (chosen.lasso ? " in the lasso" : "");
    $("#count").textContent = `${number(listed.length)} of ${number(pairs.length)} pairs${where}: ${
      counts.join(", ") || `none ${chosen.marked ? "is marked: open one, press Keep or Drop" : "fits"}`}`;
    $("#ids textarea").value = listed.map((pair) => pair.id).filter(Boolean).join("\n");
    showGallery();
    drawMap();
    showMarks();
  }

  // --- The gallery ----------------------------------------------------------------------------
  function card(pair, sequence) { // that the arrows follow in its story
    const caption = pair.caption || "no caption";
    const shownToo = filters.sort.startsWith("agreement") ? "agreement" : "influence";
    const told = ["value", shownToo].filter((name) => typeof pair[name] === "number")
      .map((name) => `, ${name} ${signed(pair[name])}`).join("");
    return make("button", { class: "card", type: "button", "data-pair": pair.number,
      onclick: () => { order = Array.isArray(sequence) ? sequence : listed; tell(pair); } },
      photo(pair), make("span", { class: "caption", dir: "auto" }, caption),
      make("span", { class: "numbers" }, `${pair.decision}${told}`),
    ...badge(marks.get(pair.id)));
  }
  function fill(list, rows, n) { // n more cards, and a button for the rest
    const from = list.childElementCount, left = rows.length - from - n;
    list.append(...rows.slice(from, from + n).map((pair) => make("li", {}, card(pair, rows))));
    list.nextElementSibling?.remove();
    if (left > 0) list.after(button(`${number(left)} more`, () => {
      fill(list, rows, n);
      list.children[from + n].firstChild.focus();
    }));
  }
  function sides(rows, n) {
    return make("div", { class: "sides" }, ...sidesOf(rows).map(([name, part, look = ""]) => {
      const list = make("ul", { class: "cards" });
      const title = make(filters.group ? "h4" : "h3", {}, `${name} (${number(part.length)})`);
      const side = make("div", { class: `side ${look}` }, title, list);
      fill(list, part, n);
      return side;
    }));
  }
  function showGallery() {
    const gallery = $("#gallery"), by = filters.group, groups = new Map(), labels = new Map(meta.clusters);
    gallery.replaceChildren();
    if (!by) return gallery.append(sides(listed, PER_SIDE));
    for (const pair of listed) {
      if (!groups.has(pair[by])) groups.set(pair[by], []);
      groups.get(pair[by]).push(pair);
    }
    const sorted = [...groups].sort((p, q) => q[1].length - p[1].length);
    const title = (key, i) => (by === "family" ? `Family ${i + 1}` : labels.get(key) ?? key);
    (function more(from) {
      gallery.append(...sorted.slice(from, from + GROUPS).map(([key, rows], i) => make("div", {},
        make("h3", { dir: "auto" }, `${title(key, from + i)} (${number(rows.length)})`), sides(rows, PER_GROUP))));
      const left = sorted.length - from - GROUPS;
      if (left > 0) gallery.append(button(`${number(left)} more groups`, (event) => {
        event.target.remove();
        more(from + GROUPS);
      }));
    })(0);
  }

  // --- A pair's story -------------------------------------------------------------------------
  const dialog = $("#story");
  async function strip(title, numbers) {
    const found = (await Promise.all(numbers.map(pairOf))).filter(Boolean);
    return found.length ? [make("h3", {}, title), make("div", { class: "row" }, ...found.map(card))] : [];
  }
  async function tell(pair) {
    shown = pair;
    const fault = pair.fault ? [make("p", {}, `Planted fault: ${spaced(pair.fault)}.`)] : [];
    const cluster = pair.cluster === NONE ? [] : [make("button", { type: "button",
      "data-view": JSON.stringify({ cluster: String(pair.cluster) }) }, `Look at cluster ${pair.cluster}`)];
    const lines = pair.story.flatMap(([name, text]) => [make("dt", {}, name), make("dd", { dir: "auto" }, text)]);
    $("#told").replaceChildren(make("div", { class: "head" }, photo(pair, pair.caption), make("div", {},
      make("h2", { id: "story-title", class: "caption", dir: "auto", tabindex: "-1" }, pair.caption || "no caption"),
      make("p", { class: "key", dir: "auto" }, pair.key), make("p", {}, make("code", {}, pair.id || "no id")),
      ...fault, ...cluster)), make("dl", {}, ...lines));
    if (dialog.open) $("#story-title").focus(); else dialog.showModal(); // read aloud
    history.replaceState(null, "", `#${pair.id}`);
    showMarks();
    const rows = [...await strip("Better near copies", pair.copies), ...await strip("Nearest pairs", pair.near)];
    if (shown === pair) $("#told").append(...rows);
  }
  const step = (by) => tell(order[order.indexOf(shown) + by] ?? shown);
  const leave = () => { shown = null; history.replaceState(null, "", location.pathname + location.search); };
  dialog.addEventListener("close", leave);
  $("#close").addEventListener("click", () => dialog.close());
  for (const choice of $$("[data-step]")) choice.addEventListener("click", () => step(Number(choice.dataset.step)));
  for (const choice of $$("[data-mark]")) choice.addEventListener("click", () => mark(shown, choice.dataset.mark));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
    const keys = dialog.open ? { ArrowLeft: () => step(-1), ArrowRight: () => step(1), k: () => mark(shown, "keep"),
      d: () => mark(shown, "drop"), u: () => mark(shown, "") } : { "/": () => form.search.focus() };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  async function follow() { // the address names a pair
    const id = location.hash.slice(1).toLowerCase();
    if (!/^[0-9a-f]{6,32}$/.test(id)) return;
    const pair = await pairWithId(id);
    if (pair) return tell(pair);
    $("#count").textContent = `No pair ${id} in this run.`;
    $("#count").scrollIntoView({ block: "center" });
  }

  // --- The map --------------------------------------------------------------------------------
  let plot = null, mapped = [], axes = [], palette = null; // mapped: what its points are
  function byRank(name) { // so that a few extremes do not take all colours
    const sorted = mapped.map((pair) => pair[name]).sort((p, q) => p - q), last = sorted.length - 1;
    const rank = new Map(sorted.map((value, i) => [value, i / Math.max(1, last)]));
    const colourAt = (part) => meta.palette[Math.round(part * (meta.palette.length - 1))];
    return { colour: (pair) => colourAt(rank.get(pair[name])),
      legend: [0, 0.5, 1].map((part) => [colourAt(part), signed(sorted[Math.round(part * last)] ?? 0)]) };
  }
  const byWord = (name, colours) => ({ colour: (pair) => colours[pair[name]] ?? "#8c96a0",
    legend: Object.entries(colours).map(([word, colour]) => [colour, spaced(word)]) });
  const FAULTS = ["#d55e00", "#cc79a7", "#009e73", "#e69f00", "#0072b2"];
  const colourings = { decision: () => byWord("decision", { kept: css("--kept"), dropped: css("--dropped") }),
    value: () => byRank("value"), influence: () => byRank("influence"), agreement: () => byRank("agreement"),
    cluster: () => ({ colour: (pair) => `hsl(${Math.round(pair.cluster * 137.508) % 360} 62% 52%)`, legend: [] }),
    fault: () => byWord("fault", Object.fromEntries(choices.fault.map(([word], i) => [word, FAULTS[i % 5]]))) };
  if (!choices.fault.length) $("#colour [value=fault]").remove();

  function drawMap() {
    if (!plot) return;
    const there = new Set(listed);
    plot.renderers[0].data_source.data = { x: mapped.map((pair) => pair[axes[0]]),
      y: mapped.map((pair) => pair[axes[1]]), colour: mapped.map(palette.colour),
      alpha: mapped.map((pair) => (there.has(pair) ? 0.9 : 0.06)) };
  }
  function fit() { // axes and colours as chosen, all points in sight
    axes = $("#axes").value.split(" ");
    const hasAxes = axes[0] !== "x";
    [plot.x_range, plot.y_range].forEach((range, i) => {
      const sorted = mapped.map((pair) => pair[axes[i]]).sort((p, q) => p - q);
      const cut = hasAxes ? Math.floor(sorted.length / 500) : 0; // but for a few extremes
      const low = sorted[cut], high = sorted[sorted.length - 1 - cut], margin = 0.05 * (high - low || 1);
      [range.start, range.end] = [low - margin, high + margin];
      const axis = [plot.below[0], plot.left[0]][i];
      axis.visible = hasAxes;
      axis.axis_label_text_color = axis.major_label_text_color = axis.axis_line_color = css("--ink");
    });
    palette = colourings[$("#colour").value]();
    $("#legend").replaceChildren(...palette.legend.flatMap(([colour, text]) => [
      make("span", { class: "swatch", style: `background: ${colour}` }), text]));
    drawMap();
  }
  const remap = () => { mapped = pairs.filter((pair) => pair.x !== null); fit(); };
  window.influencespace = { // what scripts beside the page and the map call
    chunk: (i, text) => waiting[i](text),
    tapped: (rows) => rows.length && tell(mapped[rows[0]]),
    lassoed: (rows) => {
      chosen.lasso = rows.length ? new Set(rows.map((row) => mapped[row].number)) : undefined; render();
    },
    hovered: (rows, x, y) => {
      const box = $("#card"), pair = mapped[rows[0]], area = $("#plot").getBoundingClientRect();
      box.hidden = !pair;
      if (!pair) return;
      box.replaceChildren(photo(pair), make("span", { class: "caption", dir: "auto" }, pair.caption),
        make("div", { class: "numbers" }, `${pair.decision}: ${pair.reason}`));
      box.style.left = `${Math.min(area.left + x + 16, innerWidth - 236)}px`;
      box.style.top = `${Math.min(area.top + y + 16, innerHeight - box.offsetHeight - 8)}px`;
    },
  };
  $("#plot").addEventListener("mouseleave", () => { $("#card").hidden = true; });
  for (const id of ["#colour", "#axes"]) $(id).addEventListener("change", fit);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", fit);
  $("#copy").addEventListener("click", () => { $("#ids textarea").select(); document.execCommand("copy"); });

  // --- Begin ----------------------------------------------------------------------------------
  const fillStrip = (cell) => {
    strips.unobserve(cell);
    cell.append(...cell.dataset.pairs.split(" ").filter(Boolean).map((n) => card(byNumber.get(Number(n)))));
    for (const photo of cell.children) photo.tabIndex = -1; // the row's button opens them all
  };
  const strips = new IntersectionObserver((entries) => // filled when they come into sight, and for paper
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => fillStrip(entry.target)));
  window.addEventListener("beforeprint", () => $$("details[open] .strip:empty").forEach(fillStrip));
  for (const cell of $$(".strip")) strips.observe(cell);
  const missing = meta.n - pairs.length;
  if (missing) $("#rest").append(meta.note, " ", button(`Load the other ${number(missing)} pairs`, async (event) => {
    for (const i of meta.chunks.keys()) {
      event.target.textContent = `Loading file ${i + 1} of ${meta.chunks.length}`;
      await load(i);
    }
    $("#rest").textContent = pairs.length < meta.n ? "Some of report_files is not here." : "";
    remap();
    render();
  }));
  document.head.append(make("script", {}, await unpack(data("library")))); // runs at once
  await Bokeh.embed.embed_item(await unpack(data("map")), "plot");
  plot = Bokeh.documents[0].roots()[0];
  remap();
  $("#views button").click();
  await follow();
  window.addEventListener("hashchange", follow);
  document.documentElement.dataset.ready = "yes";
})();
