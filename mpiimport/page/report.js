// The page: it reads the report's JSON from itself and nothing else.
"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PHASES = ["find", "wait", "read", "unmarshal", "dlopen", "execute", "other"];
const COLOURS = {
  opening: "delivered by an opening", node: "found by another rank of the host", lockstep: "in lockstep",
  local: "searched by the rank itself", "built-in": "built-in, frozen, or of another finder", missing: "not found, or raised",
  stage: "stage of the start",
};
const ROW_PX = 18, SHOWN = 200;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
const milliseconds = (us) => Math.abs(us) >= 1e6 ? (us / 1e6).toFixed(2) + " s" : (us / 1e3).toFixed(Math.abs(us) < 1e4 ? 2 : 1) + " ms";
const bytes = (size) => size === null ? "" : size < 1e5 ? (size / 1e3).toFixed(1) + " kB" : (size / 1e6).toFixed(1) + " MB";
const inRows = (columns, rows) => rows.map((row) => Object.fromEntries(columns.map((name, at) => [name, row[at]])));

// Records as objects: with their module, what is around them, how deep they are, and the time that is their own.
const modules = inRows(report.modules.columns, report.modules.rows);
const ranks = inRows(report.ranks.columns, report.ranks.rows);
const ofRank = new Map(ranks.map((one) => [one.rank, one]));
const lanes = new Map();
for (const detail of report.details) {
  const records = inRows(detail.records.columns, detail.records.rows);
  records.forEach((record, at) => {
    record.at = at;
    Object.assign(record, modules[record.module]);
    record.around = record.parent === null ? null : records[record.parent];
    record.depth = record.around ? record.around.depth + 1 : 1;
    record.inside = [];
    if (record.around) record.around.inside.push(record);
    record.own = PHASES.reduce((sum, phase) => sum + record[phase + "_us"], 0);
    record.total = record.end_us - record.begin_us;
    record.colour = record.error || record.kind === "missing" ? "missing"
      : record.answer in COLOURS ? record.answer : record.answer === null ? "opening" : "built-in";
  });
  const stages = detail.stages.map((stage) => ({
    ...stage, depth: 0, colour: "stage", total: stage.end_us - stage.begin_us, own: stage.end_us - stage.begin_us,
    inside: [], around: null, is_stage: true,
  }));
  lanes.set(detail.rank, { ...detail, records: records, stages: stages, items: [...stages, ...records] });
}

// What is shown; the address has it, so that a view can be sent to somebody.
const state = { rank: 0, beside: null, search: "", selected: null, sort: "own" };
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const rank = (name) => asked.has(name) && lanes.has(Number(asked.get(name))) ? Number(asked.get(name)) : null;
  state.rank = rank("rank") ?? 0;
  const leaves = [...lanes.keys()].filter((one) => one > 0);
  const slowest = leaves.sort((one, other) => ofRank.get(other).import_s - ofRank.get(one).import_s)[0] ?? null;
  state.beside = asked.get("beside") === "none" ? null : rank("beside") ?? (asked.has("rank") ? null : slowest);
  state.search = asked.get("search") ?? "";
}
function writeAddress() {
  const asked = new URLSearchParams({ rank: state.rank, beside: state.beside ?? "none" });
  if (state.search) asked.set("search", state.search);
  history.replaceState(null, "", "#" + asked);
}

const timeline = echarts.init(byId("timeline"), null, { renderer: "canvas" });
const phases = echarts.init(byId("phases"), null, { renderer: "canvas" });
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const matches = (item) => !state.search || item.name.toLowerCase().includes(state.search.toLowerCase());
const shownLanes = () => [lanes.get(state.rank), ...(state.beside === null ? [] : [lanes.get(state.beside)])];
let drawn = []; // the items, as the timeline has them

function draw() {
  const theme = Object.fromEntries([...Object.keys(COLOURS), "text", "faint", "line", "ground", "raised", "accent"]
    .map((name) => [name, colour(name)]));
  const items = []; // the timeline draws the old ones once more when its size changes
  drawn = items;
  const titles = [];
  let row = 0, last = 1;
  for (const lane of shownLanes()) {
    titles.push({ row: row, text: `rank ${lane.rank} on ${lane.host}` });
    const deepest = Math.max(...lane.items.map((item) => item.depth), 0);
    for (const item of lane.items) {
      item.row = row + 1 + item.depth;
      last = Math.max(last, item.end_us);
      items.push(item);
    }
    row += deepest + 3;
  }
  const height = row * ROW_PX + 80;
  byId("timeline").style.height = height + "px";
  timeline.resize();
  timeline.setOption({
    animation: false,
    grid: { left: 10, right: 10, top: 10, bottom: 70 },
    tooltip: { backgroundColor: theme.raised, borderColor: theme.line, textStyle: { color: theme.text }, confine: true,
      formatter: (hovered) => element("span", describe(items[hovered.dataIndex])) },
    xAxis: { type: "value", min: 0, max: Math.ceil(last / 1000), axisLabel: { color: theme.faint, hideOverlap: true, formatter: (value) => Number(value.toFixed(2)) + " ms" },
      axisLine: { lineStyle: { color: theme.line } }, splitLine: { lineStyle: { color: theme.line } } },
    yAxis: { type: "value", min: 0, max: row, inverse: true, show: false },
    dataZoom: [
      { type: "inside", filterMode: "weakFilter", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false },
      { type: "slider", filterMode: "weakFilter", bottom: 8, height: 24, textStyle: { color: theme.faint },
        borderColor: theme.line, labelFormatter: (value) => Math.round(value) + " ms" },
    ],
    series: [{
      type: "custom", clip: true, progressive: 0, encode: { x: [0, 1], y: 2 },
      data: drawn.map((item) => [item.begin_us / 1000, item.end_us / 1000, item.row]),
      renderItem: (params, api) => {
        const item = items[params.dataIndex];
        const [left, top] = api.coord([api.value(0), item.row]);
        const [right, below] = api.coord([api.value(1), item.row + 1]);
        const area = params.coordSys, from = Math.max(left, area.x), to = Math.min(right, area.x + area.width);
        const width = Math.max(to - from, 0.6);
        const chosen = item === state.selected;
        return {
          type: "rect", shape: { x: from, y: top, width: width, height: below - top - 2 },
          style: { fill: theme[item.colour], opacity: matches(item) ? 1 : 0.15, stroke: chosen ? theme.text : theme.ground,
            lineWidth: chosen ? 2 : width > 4 ? 0.5 : 0 },
          z2: chosen ? 2 : 1,
          ...(width > 40 ? {
            textContent: { style: { text: item.name, fill: "#fff", width: width - 6, overflow: "truncate", fontSize: 11,
              opacity: matches(item) ? 1 : 0.4 } },
            textConfig: { position: "insideLeft", distance: 4 },
          } : {}),
        };
      },
    }],
    graphic: titles.map((title, at) => ({ id: "lane" + at, type: "text", left: 12, top: 14 + title.row * ROW_PX,
      style: { text: title.text, fill: theme.text, font: "600 13px system-ui, sans-serif" } })),
  }, { replaceMerge: ["graphic"] });
  drawPhases(theme);
}

function drawPhases(theme) {
  const named = ["node", "local", "lockstep", "built-in", "stage", "opening", "missing"];
  const detailed = [...lanes.keys()].map((rank) => ofRank.get(rank));
  byId("phases").style.height = detailed.length * 26 + 70 + "px";
  phases.resize();
  phases.setOption({
    animation: false,
    grid: { left: 120, right: 30, top: 34, bottom: 30 },
    legend: { top: 0, left: 0, textStyle: { color: theme.text } },
    tooltip: { trigger: "item", backgroundColor: theme.raised, borderColor: theme.line, textStyle: { color: theme.text },
      formatter: (hovered) => element("span", `${hovered.name}, ${hovered.seriesName}: ${milliseconds(hovered.value * 1000)}`) },
    xAxis: { type: "value", axisLabel: { color: theme.faint, formatter: "{value} ms" }, splitLine: { lineStyle: { color: theme.line } } },
    yAxis: { type: "category", inverse: true, data: detailed.map((one) => `rank ${one.rank} ${one.host}`),
      axisLabel: { color: theme.text, width: 110, overflow: "truncate" } },
    series: PHASES.map((phase, at) => ({ type: "bar", stack: "all", name: phase, itemStyle: { color: theme[named[at]] },
      data: detailed.map((one) => one[phase + "_s"] * 1000) })),
  });
}

function describe(item) {
  if (!item) return "No import is selected.";
  const parts = [item.name, milliseconds(item.total)];
  if (item.is_stage) return parts.join(", ");
  if (item.inside.length) parts.push(milliseconds(item.own) + " without the imports inside");
  parts.push(...PHASES.filter((phase) => item[phase + "_us"]).map((phase) => phase + " " + milliseconds(item[phase + "_us"])));
  parts.push([item.answer === null ? "imported inside" : COLOURS[item.answer] ?? item.answer, item.kind].filter(Boolean).join(", "));
  if (item.bytes !== null) parts.push(bytes(item.bytes));
  if (item.missed) parts.push("not foreseen");
  if (item.error) parts.push("raised " + item.error);
  if (item.origin) parts.push(item.origin);
  return parts.join(" · ");
}

function select(item, { zoom = false } = {}) {
  state.selected = item;
  byId("selected").textContent = describe(item);
  if (item && zoom) {
    const margin = Math.max(item.total * 0.05, 20);
    show((item.begin_us - margin) / 1000, (item.end_us + margin) / 1000);
  } else if (item) {
    const [from, to] = window_();
    if (item.end_us / 1000 < from || item.begin_us / 1000 > to) {
      const middle = (item.begin_us + item.end_us) / 2000;
      show(middle - (to - from) / 2, middle + (to - from) / 2);
    }
  }
  timeline.setOption({ series: [{ data: drawn.map((one) => [one.begin_us / 1000, one.end_us / 1000, one.row]) }] });
}
const limits = () => [0, timeline.getOption().xAxis[0].max];
const window_ = () => { const zoom = timeline.getOption().dataZoom[0]; return [zoom.startValue, zoom.endValue]; };
function show(from, to) {
  const [first, last] = limits();
  timeline.dispatchAction({ type: "dataZoom", startValue: Math.max(first, from), endValue: Math.min(last, to) });
}
function zoom(factor) {
  const [from, to] = window_();
  const item = state.selected;
  const middle = item ? (item.begin_us + item.end_us) / 2000 : (from + to) / 2;
  const half = (to - from) / 2 * factor;
  show(middle - half, middle + half);
}
function besideOf(item, step) {
  const lane = shownLanes().find((one) => one.items.includes(item));
  const same = lane.items.filter((one) => one.depth === item.depth && matches(one));
  const at = same.indexOf(item);
  return same[at < 0 ? 0 : at + step];
}

const KEYS = {
  ArrowRight: (item) => item ? besideOf(item, 1) : drawn[0],
  ArrowLeft: (item) => item ? besideOf(item, -1) : drawn[0],
  ArrowDown: (item) => !item ? drawn[0] : item.is_stage ? shownLanes().find((one) => one.items.includes(item)).records[0] : item.inside[0],
  ArrowUp: (item) => item ? item.around : drawn[0],
};
byId("timeline").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (KEYS[event.key]) select(KEYS[event.key](state.selected) ?? state.selected);
  else if (event.key === "Enter" && state.selected) select(state.selected, { zoom: true });
  else if (event.key === "+" || event.key === "=") zoom(0.5);
  else if (event.key === "-") zoom(2);
  else if (event.key === "Escape") show(...limits());
  else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches("input, select")) {
    byId("search").focus();
    event.preventDefault();
  }
});
timeline.on("click", (clicked) => select(drawn[clicked.dataIndex]));
timeline.on("dblclick", (clicked) => select(drawn[clicked.dataIndex], { zoom: true }));

// Tables

function fill(table, head, rows, caption) {
  const header = element("tr");
  for (const cell of head) header.append(cell instanceof Node ? cell : element("th", cell, { scope: "col" }));
  const body = element("tbody");
  for (const row of rows) {
    const line = element("tr");
    for (const cell of row) {
      const made = element("td", cell instanceof Node ? undefined : cell);
      if (cell instanceof Node) made.append(cell);
      line.append(made);
    }
    body.append(line);
  }
  const top = element("thead");
  top.append(header);
  table.replaceChildren(...(caption ? [element("caption", caption)] : []), top, body);
}

function ownTimes(lane) {
  const times = new Map();
  for (const record of lane ? lane.records : []) {
    const one = times.get(record.name) ?? { own: 0, total: 0, record: record };
    one.own += record.own;
    one.total += record.total;
    if (record.answer !== null && (one.record.answer === null || record.total > one.record.total)) one.record = record;
    times.set(record.name, one);
  }
  return times;
}

function tableOfModules() {
  const [lane, other] = shownLanes();
  const here = ownTimes(lane), there = ownTimes(other);
  const rows = [];
  for (const [name, one] of here) {
    if (!matches(one.record)) continue;
    const beside = there.get(name);
    rows.push({ name: name, own: one.own, total: one.total, beside: beside ? beside.own : -1,
      difference: beside ? one.own - beside.own : 0, answer: one.record.answer ?? "", bytes: one.record.bytes ?? -1, record: one.record });
  }
  const key = state.sort;
  rows.sort((one, two) => typeof one[key] === "string" ? one[key].localeCompare(two[key])
    : key === "difference" ? Math.abs(two[key]) - Math.abs(one[key]) : two[key] - one[key]);
  const titles = { name: "module", own: `own time, rank ${lane.rank}`, total: "with the imports inside", answer: "answer", bytes: "size" };
  if (other) Object.assign(titles, { beside: `own time, rank ${other.rank}`, difference: "difference" });
  const keys = ["name", "own", "total", ...(other ? ["beside", "difference"] : []), "answer", "bytes"];
  const head = keys.map((name) => {
    const cell = element("th", undefined, { scope: "col", "aria-sort": name !== key ? "none" : name === "name" || name === "answer" ? "ascending" : "descending" });
    const button = element("button", titles[name] + (name === key ? " ▾" : ""), { type: "button", "data-sort": name });
    button.addEventListener("click", () => {
      state.sort = name;
      tableOfModules();
      byId("modules").querySelector(`[data-sort=${name}]`).focus();
    });
    cell.append(button);
    return cell;
  });
  const cells = {
    name: (row) => {
      const button = element("button", row.name, { type: "button" });
      button.addEventListener("click", () => { select(row.record, { zoom: true }); byId("timeline").focus(); });
      return button;
    },
    own: (row) => milliseconds(row.own), total: (row) => milliseconds(row.total), answer: (row) => row.record.kind === "missing" ? "not found" : row.answer,
    beside: (row) => row.beside < 0 ? "" : milliseconds(row.beside), difference: (row) => row.beside < 0 ? "" : milliseconds(row.difference),
    bytes: (row) => bytes(row.record.bytes),
  };
  fill(byId("modules"), head, rows.slice(0, SHOWN).map((row) => keys.map((name) => cells[name](row))),
    rows.length > SHOWN ? `${rows.length - SHOWN} more; search to see them` : null);
  byId("found").textContent = state.search ? `${rows.length} modules` : "";
}

function tableOfMissed() {
  const rows = report.missed.map((one) => {
    const counts = new Map();
    for (const answer of one.answers) counts.set(answer, (counts.get(answer) ?? 0) + 1);
    return [one.name, [...counts].map(([how, count]) => `${count} ${COLOURS[how] ?? how}`).join(", "), milliseconds(one.us),
      one.in_next_opening ? "yes" : "no"];
  });
  const few = lanes.size < report.size ? "of the ranks in detail" : null;
  fill(byId("missed"), ["module", "ranks", "most time", "in the next opening"], rows, rows.length ? few : "Nothing: every question was foreseen.");
}

function tableOfRanks() {
  const sorted = [...ranks].sort((one, other) => other.import_s - one.import_s);
  const rows = sorted.slice(0, SHOWN).map((one) => {
    let name = String(one.rank);
    if (lanes.has(one.rank)) {
      const button = element("button", name, { type: "button", title: "show in the timeline" });
      button.addEventListener("click", () => { state.rank = one.rank; update(); byId("timeline").focus(); });
      name = button;
    }
    return [name, one.host, ...["ready_s", "import_s", "execute_s", "dlopen_s", "unmarshal_s", "find_s", "wait_s"].map((key) => milliseconds(one[key] * 1e6)),
      String(one.opening), String(one.missed), bytes(one.broadcast_bytes)];
  });
  fill(byId("ranks"), ["rank", "host", "start", "imports", "execute", "dlopen", "unmarshal", "find", "wait", "by openings", "not foreseen", "received"], rows,
    report.size > SHOWN ? `the ${SHOWN} slowest of ${report.size}` : null);
}

function facts() {
  byId("program").textContent = report.arguments.join(" ");
  const worst = [...ranks].sort((one, other) => other.import_s - one.import_s)[0];
  const all = {
    ranks: `${report.size} on ${report.hosts} host${report.hosts === 1 ? "" : "s"}`,
    "imports, slowest rank": `${milliseconds(worst.import_s * 1e6)} (rank ${worst.rank})`,
    "imports, rank 0": milliseconds(ranks[0].import_s * 1e6),
    "start, rank 0": milliseconds(ranks[0].ready_s * 1e6),
    delivered: bytes(ranks[ranks.length - 1].broadcast_bytes) + " to each rank",
    "not foreseen": `${report.totals.missed} questions`,
    "operations avoided, estimated": report.operations.avoided.toLocaleString("en"),
    policy: report.policy, Python: report.python, mpiimport: report.mpiimport, MPI: report.library ?? "none", began: report.began,
  };
  for (const [name, text] of Object.entries(all)) {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", text));
    byId("facts").append(pair);
  }
  for (const [name, text] of Object.entries(COLOURS)) {
    const item = element("li");
    item.append(element("span", undefined, { style: `background: var(--${name})` }), text);
    byId("legend").append(item);
  }
  byId("operations").textContent = `${report.operations.avoided.toLocaleString("en")}. ${report.operations.counted}`;
}

function update() {
  if (state.beside === state.rank) state.beside = null;
  byId("rank").value = state.rank;
  byId("beside").value = state.beside ?? "none";
  byId("search").value = state.search;
  select_(null);
  draw();
  tableOfModules();
  writeAddress();
}
function select_(item) {
  state.selected = item;
  byId("selected").textContent = describe(item);
}

for (const lane of lanes.values()) {
  for (const id of ["rank", "beside"]) byId(id).append(element("option", `${lane.rank} on ${lane.host}`, { value: lane.rank }));
}
byId("beside").prepend(element("option", "none", { value: "none" }));
byId("rank").addEventListener("change", (event) => { state.rank = Number(event.target.value); update(); });
byId("beside").addEventListener("change", (event) => {
  state.beside = event.target.value === "none" ? null : Number(event.target.value);
  update();
});
byId("search").addEventListener("input", (event) => {
  state.search = event.target.value;
  draw();
  tableOfModules();
  writeAddress();
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("reset").addEventListener("click", () => show(...limits()));
addEventListener("resize", () => { timeline.resize(); phases.resize(); });
addEventListener("hashchange", () => { readAddress(); update(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

facts();
tableOfMissed();
tableOfRanks();
readAddress();
update();
document.documentElement.dataset.ready = "yes";
