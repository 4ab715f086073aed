"use strict";
const PHASES = ["queued", "placed", "reading", "ready", "prefilling", "handed_over", "decoding"];
const SOURCES = { storage_prefill: "read by prefill side", storage_decode: "read by decode side", memory: "already there", computed: "computed" };
const HOT = 0.85, KEPT = 120; // of a NIC's rate; samples of history
const history = [];
const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const sum = (values) => values.reduce((all, value) => all + value, 0);
const number = (value) => value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 10 ? 1 : 0 });
const short = (value) => value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
const percent = (value) => `${number(100 * value)} %`;
const seconds = (value) => (value < 0.1 ? `${number(1000 * value)} ms` : `${value.toFixed(2)} s`);
const mbit = (bytesPerS) => (bytesPerS || 0) * 8 / 1e6;
const mbps = (bytesPerS) => number(mbit(bytesPerS));
const share = (part, whole) => (whole ? (part || 0) / whole : 0);
const put = (id, ...inner) => $(id).replaceChildren(...inner);

function make(tag, className, ...inner) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...inner); // text stays text
  return node;
}

function draw(tag, attributes, ...inner) {
  const node = document.createElementNS($("svg").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...inner);
  return node;
}

const hint = (text) => draw("title", {}, text);
const canvas = (width, height, label, ...inner) => // in pixels: text keeps its size
  draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }, ...inner);

function track(parts) { // [share of 1, class, title]
  const bar = make("div", "track");
  for (const [size, className, title] of parts) {
    const part = make("i", className);
    part.style.width = `${Math.min(100, 100 * size)}%`;
    part.title = title || "";
    bar.append(part);
  }
  return bar;
}

const row = (name, parts, value) => make("div", "row", make("span", "dim", name), track(parts), make("span", "", value));

function bars(named, say) { // [name, value, class], each beside the largest
  const largest = Math.max(1e-9, ...named.map(([, value]) => value));
  return named.map(([name, value, className]) => row(name, [[value / largest, className]], say(value)));
}

// -- the picture: storage around, prefill nodes left, decode nodes right, the compute network between

function arrow(from, to, y, rate, capacity, what) {
  const used = share(rate, capacity), thick = rate ? 1.5 + 5 * Math.min(1, used) : 1;
  const kind = `flow ${!rate ? "idle" : used >= HOT ? "hot" : ""}`;
  const head = Math.sign(to - from) * (4 + thick), limit = capacity ? ` of ${mbps(capacity)}` : "";
  const text = draw("text", { x: (from + to) / 2, y: y - 5, "text-anchor": "middle", class: "small" }, rate ? short(mbit(rate)) : "");
  return draw("g", {}, hint(`${what}: ${mbps(rate)}${limit} Mbit/s`), text,
    draw("line", { x1: from, y1: y, x2: to - head, y2: y, "stroke-width": thick, class: kind }),
    draw("polygon", { points: `${to},${y} ${to - head},${y - 2 - thick} ${to - head},${y + 2 + thick}`, class: kind }));
}

function nodeBox(node, x, y, width, numRequests) {
  const fits = Math.floor((width - 8) / 7), bad = node.is_up && node.silent_s < 3 ? "" : "bad";
  const line = (text, at, kind) => draw("text", { x: x + width / 2, y: y + at, "text-anchor": "middle", class: kind }, text);
  const name = node.node_id.length > fits ? `${node.node_id.slice(0, fits - 1)}\u2026` : node.node_id;
  const state = !node.is_up ? `lost ${Math.round(node.silent_s)} s` : bad ? `silent ${Math.round(node.silent_s)} s` : node.role;
  return draw("g", {}, hint(`${node.node_id}, ${node.role} ${node.host}: ${node.engines.join(", ")}`),
    draw("rect", { x, y, width, height: 50, rx: 5, class: `box ${bad}` }), line(name, 15, "name"),
    line(`${numRequests} requests`, 30, "small"), line(state, 44, bad || "small"));
}

function picture(seen) {
  const { stats, flows, panels } = seen, rail = 8, row = 62, top = 46;
  const width = Math.max(280, $("picture").clientWidth), middle = width / 2;
  const sides = ["prefill", "decode"].map((role) => stats.nodes.filter((node) => node.role === role));
  const height = top + row * Math.max(1, ...sides.map((nodes) => nodes.length));
  const link = Math.min(120, Math.max(42, width * 0.12)), box = middle - 1.5 * rail - 2 * link;
  const bar = (x, y, w, h) => draw("rect", { x, y, width: w, height: h, rx: 3, class: "rail" });
  const total = (by) => (panels ? mbps(sum(Object.values(by(panels)))) : "-");
  const said = `storage: ${total((p) => p.read_bytes_per_s)} read, ${total((p) => p.written_bytes_per_s)} written, 10 s mean`;
  const drawn = [bar(0, 20, width, rail), bar(0, 20, rail, height - 20), bar(width - rail, 20, rail, height - 20),
    bar(middle - rail / 2, top, rail, height - top),
    draw("text", { x: middle, y: 13, "text-anchor": "middle" }, said),
    draw("text", { x: middle, y: 41, "text-anchor": "middle", class: "small" }, "compute network")];
  sides.forEach((nodes, side) => nodes.forEach((node, place) => {
    const y = top + row * place, x = side ? middle + rail / 2 + link : rail + link;
    const rates = flows[node.node_id] || {}, disk = node.storage_nic_bytes_per_s, net = node.compute_nic_bytes_per_s;
    const outer = side ? width - rail : rail, edge = side ? x + box : x, inner = side ? x : x + box;
    const [left, right] = side ? [middle + rail / 2, inner] : [inner, middle - rail / 2];
    drawn.push(nodeBox(node, x, y, box, sum(stats.engines.filter((e) => e.node_id === node.node_id).map((e) => e.num_requests))),
      arrow(outer, edge, y + 16, rates.storage_read, disk, `${node.node_id} reads`),
      arrow(edge, outer, y + 40, rates.storage_write, disk, `${node.node_id} writes`),
      arrow(right, left, y + 16, rates.decode_to_prefill, net, `${node.node_id}, to prefill`),
      arrow(left, right, y + 40, rates.prefill_to_decode, net, `${node.node_id}, to decode`));
  }));
  put("picture", canvas(width, height, `${stats.nodes.length} nodes between storage and the compute network`, ...drawn));
}

// -- panels

function remember(seen) {
  if (history.length && history[history.length - 1].taken_s === seen.taken_s) return; // sent again to a new stream
  const load = (stats) => stats.nodes.map((n) => [n.node_id, n.role,
    n.storage_nic_bytes_per_s ? share((seen.flows[n.node_id] || {}).storage_read, n.storage_nic_bytes_per_s) : null]);
  history.push({ taken_s: seen.taken_s, phases_s: seen.panels ? seen.panels.ttft_phases_s : {}, loads: load(seen.stats) });
  if (history.length > KEPT) history.shift();
}

function chart(id, top, unit, label, shapes) { // shapes(x of a sample, y of a value, width of a sample)
  const width = Math.max(200, $(id).clientWidth), height = 84, step = width / KEPT;
  const x = (place) => width - step * (history.length - place), y = (value) => height - (height - 14) * Math.min(1, value / top);
  put(id, canvas(width, height, label, ...shapes(x, y, step, width), draw("line", { x1: 0, y1: height, x2: width, y2: height, class: "axis" }),
    draw("text", { x: 0, y: 10, class: "small" }, unit(top)),
    draw("text", { x: width, y: 10, class: "small", "text-anchor": "end" }, `last ${Math.round(history[history.length - 1].taken_s - history[0].taken_s)} s`)));
}

function showFirstTokens(panels) {
  const known = panels && panels.ttft_s !== null;
  $("ttft").textContent = known ? `${seconds(panels.ttft_s)}, mean of ${panels.num_first_tokens} in ${number(panels.interval_s)} s`
    : "no first token in this time";
  const longest = Math.max(1e-3, ...history.map((h) => sum(Object.values(h.phases_s))));
  chart("ttft-history", longest, seconds, "time to first token by phase", (x, y, step) => history.flatMap((h, place) => {
    let below = 0;
    return PHASES.filter((phase) => h.phases_s[phase]).map((phase) => {
      const from = below;
      below += h.phases_s[phase];
      return draw("rect", { x: x(place), y: y(below), width: step, height: y(from) - y(below), class: phase });
    });
  }));
  put("ttft-phases", ...(known ? bars(Object.entries(panels.ttft_phases_s).map(([phase, s]) => [phase, s, phase]), seconds) : []));
}

function showStorage(seen) {
  const { stats, flows } = seen, reads = stats.nodes.map((n) => (flows[n.node_id] || {}).storage_read || 0);
  const mean = sum(reads) / Math.max(1, reads.length), known = stats.nodes.some((n) => n.storage_nic_bytes_per_s);
  $("nic").textContent = (mean ? `busiest over mean: ${(Math.max(...reads) / mean).toFixed(2)}` : "nothing is read now") +
    (known ? "" : "; the NICs' rate is not known (storage_nic_mbps)");
  $("nic-history").hidden = !known;
  if (known) {
    chart("nic-history", 1, () => "100 %, reads; green: prefill, violet, dashed: decode", "storage NICs, of their rate", (x, y, step, width) => [
      draw("line", { x1: 0, y1: y(HOT), x2: width, y2: y(HOT), class: "limit" }),
      ...stats.nodes.map((n) => {
        const points = history.flatMap((h, place) => h.loads.filter(([id, , used]) => id === n.node_id && used !== null)
          .map(([, , used]) => `${x(place)},${y(used)}`));
        return draw("polyline", { points: points.join(" "), class: `trace ${n.role}` }, hint(n.node_id));
      })]);
  }
  const flow = (n, name, rate) => row(`${n.node_id} ${name}`, [[share(rate, n.storage_nic_bytes_per_s)]],
    `${mbps(rate)}${n.storage_nic_bytes_per_s ? ` of ${mbps(n.storage_nic_bytes_per_s)}` : ""} Mbit/s`);
  put("nics", ...stats.nodes.flatMap((n) => [flow(n, "read", (flows[n.node_id] || {}).storage_read),
    flow(n, "write", (flows[n.node_id] || {}).storage_write)]));
}

function showPanels(seen) {
  const { stats, panels, queues_s: queues } = seen, phases = stats.requests_in_phase;
  put("waiting", ...bars(PHASES.map((phase) => [phase, phases[phase] || 0, phase]), String));
  const tokens = (node) => sum(stats.engines.filter((e) => e.node_id === node.node_id).map((e) => e.read_queue_tokens));
  const longest = Math.max(1e-9, ...Object.values(queues).map((s) => s || 0));
  put("queues", ...stats.nodes.map((n) => row(`${n.role} ${n.node_id}`, [[share(queues[n.node_id], longest)]],
    `${queues[n.node_id] === null ? "rate not known" : seconds(queues[n.node_id])}, ${number(tokens(n))} tokens`)));
  if (!panels) return;
  const all = Math.max(1, sum(Object.values(panels.paths)));
  const sides = ["prefill", "decode"].flatMap((side) => [[`read, ${side}`, panels.read_bytes_per_s[side]],
    [`written, ${side}`, panels.written_bytes_per_s[side]]]);
  put("paths", ...Object.entries(panels.paths).sort().map(([path, num]) => row(`path ${path}`, [[num / all]], `${num} of ${all} requests`)),
    ...bars(sides, (rate) => `${mbps(rate)} Mbit/s`));
  const prompt = Math.max(1, sum(Object.values(panels.tokens_by_source)));
  put("sources", ...Object.entries(SOURCES).map(([source, name]) => {
    const num = panels.tokens_by_source[source] || 0;
    return row(name, [[num / prompt]], `${number(num)}, ${percent(num / prompt)}`);
  }));
  $("stall").textContent = panels.forward_s ? `${percent(sum(panels.stall_shares) + panels.push_share)} of ${seconds(panels.forward_s)} ` +
    "in forwards: history that is not there yet, new rows that have not left" : "no forward in this time";
  put("stalls", ...panels.stall_shares.map((part, layer) => row(`layer ${layer}`, [[part, "reading"]], percent(part))),
    ...(panels.forward_s ? [row("new rows leave", [[panels.push_share, "handed_over"]], percent(panels.push_share))] : []));
  put("compute", ...bars([["to prefill", panels.transferred_bytes_per_s.decode_to_prefill],
    ["to decode", panels.transferred_bytes_per_s.prefill_to_decode]], (rate) => `${mbps(rate)} Mbit/s`));
  put("latencies", ...[["read", panels.reading], ["written", panels.writing]].flatMap(([name, l]) => (l.num
    ? bars([[`${name}, p50`, l.p50_s], [`${name}, p99`, l.p99_s]], (s) => `at most ${seconds(s)}`)
    : [row(name, [], "none in this time")])));
  const wrong = [...Object.entries(panels.troubles), ["requests resumed", panels.num_retries],
    ["lingering transfers", sum(stats.engines.map((e) => e.transfers_lingering))]];
  const since = { "missing blocks": "blocks_missing", "corrupt on storage": "blocks_corrupt", "corrupt on the way": "kv_corrupt",
    "reads failed": "blocks_failed", "not written": "blocks_not_persisted" };
  put("troubles", ...wrong.map(([name, num]) => make("div", num ? "bad" : "dim", `${num} ${name}`,
    since[name] ? ` (${sum(stats.engines.map((e) => e[since[name]]))} since the engines' start)` : "")));
}

function showEngine(e) {
  const used = e.staging_slots_used + e.staging_slots_aside, mib = (bytes) => number(bytes / 2 ** 20);
  return make("div", "card", make("b", "", e.engine_id), ` ${e.role}, ${e.num_requests} requests `,
    row("staging slots", [[share(used, e.staging_slots)]], `${used} of ${e.staging_slots}` +
      (e.staging_slots_aside ? `, ${e.staging_slots_aside} out of use` : "")),
    row("device KV", [[share(e.device_kv_used_bytes, e.device_kv_bytes)]],
      `${mib(e.device_kv_used_bytes)} of ${mib(e.device_kv_bytes)} MiB`));
}

function showReplay(replay) {
  const told = replay.answer, age = `${Math.round(replay.age_s)} s ago`;
  $("replay").disabled = replay.is_running;
  $("replayed").textContent = replay.is_running ? "the simulator replays it; this takes seconds"
    : replay.error ? `no answer: ${replay.error}`
    : !told ? "as Basic, split and Oracle, and with more of each resource, from the recorded requests"
    : told.refusal ? `cannot tell (${age}): ${told.refusal}`
    : `${told.num_requests} requests, mean time of one, replayed ${age}` +
      (told.helps.length ? `; what would help most: ${told.helps[0].what}` : "");
  const known = told && !told.refusal ? told : { systems: [], helps: [], assumptions: [] };
  const outcomes = known.systems.concat(known.helps), longest = Math.max(1e-9, ...outcomes.map((o) => o.latency_s));
  const name = (o) => (o.what === known.recorded.what ? `${o.what}, as it was`
    : known.helps.includes(o) ? `with ${o.what}` : `as ${o.what}`);
  put("outcomes", ...outcomes.map((o) => row(name(o),
    [[share(o.ttft_s, longest), "", "to the first token"], [share(o.latency_s - o.ttft_s, longest), "after", "after it"]],
    `${o.latency_s.toFixed(2)} s, first token ${o.ttft_s.toFixed(2)} s`)));
  $("assumed").textContent = !known.recorded ? "" : (known.helps.length ? "" : "Nothing that was tried makes it 5 % faster. ") +
    `The minute as it was, simulated, is ${number(100 * known.error)} % off; ${known.assumptions.join("; ")}.`;
}

function showRequest(r, longest) {
  const parts = PHASES.filter((phase) => r.phases_s[phase])
    .map((phase) => [share(r.phases_s[phase], longest), phase, `${phase} ${r.phases_s[phase].toFixed(3)} s`]);
  const line = row(r.outcome, parts, r.ttft_s === null ? "-" : `first token ${r.ttft_s.toFixed(2)} s`);
  const about = `${r.num_prompt_tokens} tokens, ${r.num_hit_tokens} hit, ${r.path}, ${r.num_generated_tokens} made `;
  line.title = r.request_id;
  return make("div", "card", line, make("span", "dim", about), make("span", "bad", r.error || ""));
}

function show(seen) {
  if (seen.error) { $("state").textContent = seen.error; return; }
  const { stats, verdict } = seen, phases = stats.requests_in_phase;
  $("state").textContent = "live";
  $("model").textContent = seen.model;
  const seenTwice = verdict.interval_s > 0;
  $("verdict").textContent = seenTwice ? verdict.headline : "looking";
  if (seenTwice) put("more", ...verdict.findings.slice(1).map((f) => make("li", "", `${f.resource}: ${f.text}`)),
    ...verdict.missing.map((text) => make("li", "dim", `missing: ${text}`)));
  const full = stats.store && !stats.store.accepts_writes ? [`the store takes no new blocks: ${stats.store.reason}`] : [];
  put("problems", ...seen.problems.concat(full).map((text) => make("li", "", text)));
  $("counts").textContent = `${stats.num_running_requests} requests running, ${stats.num_queued_requests} queued, ` +
    `${stats.index_blocks} blocks stored`;
  showReplay(seen.replay);
  remember(seen);
  picture(seen);
  showFirstTokens(seen.panels);
  showStorage(seen);
  showPanels(seen);
  $("memory").textContent = `${phases.placed || 0} requests wait for staging slots (placed), ` +
    `${phases.handed_over || 0} for device memory (handed over)`;
  put("engines", ...stats.engines.map(showEngine));
  const longest = Math.max(1e-9, ...seen.requests.map((r) => sum(Object.values(r.phases_s))));
  put("requests", ...seen.requests.map((r) => showRequest(r, longest)));
}

function ask(path, method) { // EventSource cannot send a key
  const key = sessionStorage.getItem("dualpath-key");
  return fetch(path, { method, headers: key ? { Authorization: `Bearer ${key}` } : {} });
}

async function follow() {
  const answer = await ask("dualpath/events", "GET");
  $("ask").hidden = ![401, 403].includes(answer.status);
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  let waitMs = 0;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { done, value } = await reader.read();
    if (done) {
      if (waitMs > 2000) $("state").textContent = `live, every ${Math.round(waitMs / 1000)} s: many pages are open`;
      return waitMs;
    }
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const retry = event.match(/^retry: (\d+)$/m); // in a stream's last one
      if (retry) waitMs = Number(retry[1]);
      show(JSON.parse(event.match(/^data: (.*)$/m)[1]));
    }
  }
}

async function main() {
  for (const legend of document.querySelectorAll(".legend")) for (const phase of PHASES) legend.append(make("i", phase), phase);
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("dualpath-key", $("key").value);
  });
  $("replay").addEventListener("click", async () => {
    $("replay").disabled = true; // until the next event says how it is
    await ask("dualpath/replay", "POST").catch(() => {});
  });
  for (;;) {
    try {
      await sleep(await follow());
    } catch (error) {
      $("state").textContent = `${error.message || error}; asking again`;
      await sleep(1000);
    }
  }
}

main();
