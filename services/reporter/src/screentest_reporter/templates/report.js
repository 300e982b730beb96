"use strict";
// What the page can do beyond being read: sort tables, play clips on one clock, draw plots. Without it nothing is hidden.

// ---- tables

/** Sorts by data-key: numbers as numbers, unknown (empty) always last; a second press turns the order round. */
function makeSortable(table) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map((row) => [row.cells[column].dataset.key || "", row]);
      keyed.sort(([left], [right]) => compare(left, right, down));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

function compare(left, right, down) {
  if (left === "" || right === "") return (left === "") - (right === "");
  const [a, b] = [Number(left), Number(right)];
  const order = Number.isNaN(a) || Number.isNaN(b) ? left.localeCompare(right) : a - b;
  return down ? -order : order;
}

// ---- the synchronised player

const MOST_TILES = 4;
const JUMP_S = 0.12; // farther off than this a clip is moved, below that paced
const MOST_PACING = 0.05;
const SETTLED_S = 0.004; // of drift; correcting less only makes it swing

class Player {
  constructor(root) {
    this.root = root;
    this.stage = root.querySelector("#stage");
    this.scrub = root.querySelector("#scrub");
    this.clock = root.querySelector("#clock");
    this.clips = [];
    this.isPlaying = false;
    this.speed = 1;
    this.byShare = false;
    this.front = 0;
    this.wanted = null;
    this.listen();
  }

  listen() {
    const doing = {
      begin: () => this.goto(0),
      back: () => this.step(-1),
      on: () => this.step(1),
      play: () => this.toggle(),
      flip: () => this.flip(),
      other: () => this.other(),
    };
    this.root.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button) doing[button.dataset.do]();
    });
    this.scrub.addEventListener("input", () => this.goto((this.scrub.value / 1000) * this.length));
    this.root.querySelector("#speed").addEventListener("change", (event) => this.setSpeed(Number(event.target.value)));
    this.root.querySelector("#pace").addEventListener("change", (event) => {
      this.byShare = event.target.value === "share";
      this.setSpeed(this.speed);
      this.goto(this.position);
    });
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.target.matches("input, select, video") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.matches("button")) return;
    const keys = {
      " ": () => this.toggle(),
      k: () => this.toggle(),
      j: () => this.goto(this.position - 1),
      l: () => this.goto(this.position + 1),
      ",": () => this.step(-1),
      ".": () => this.step(1),
      Home: () => this.goto(0),
      s: () => this.chooseSpeed(this.speed === 0.25 ? 1 : 0.25),
      f: () => this.flip(),
      x: () => this.other(),
    };
    const doing = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!doing) return;
    event.preventDefault();
    doing();
  }

  /** The clips to show, as {id, title, fps, source, poster}; those that stay keep their element. */
  show(chosen) {
    const position = this.position;
    const kept = new Map(this.clips.map((clip) => [clip.id, clip]));
    this.clips = chosen.map((wanted) => kept.get(wanted.id) || this.tile(wanted));
    this.stage.replaceChildren(...this.clips.map((clip) => clip.figure));
    this.stage.dataset.count = this.clips.length;
    this.front = Math.min(this.front, Math.max(0, this.clips.length - 1));
    this.root.hidden = this.clips.length < 1;
    this.face();
    this.follow();
    Promise.all(this.clips.map((clip) => clip.ready)).then(() => {
      this.setSpeed(this.speed);
      this.goto(position);
      if (this.isPlaying) this.play();
    });
  }

  tile(wanted) {
    const figure = document.createElement("figure");
    const video = document.createElement("video");
    const caption = document.createElement("figcaption");
    video.muted = true;
    video.playsInline = true;
    video.preload = "auto";
    video.setAttribute("aria-label", wanted.title);
    if (wanted.poster) video.poster = wanted.poster;
    caption.textContent = wanted.title;
    const frame = document.createElement("span");
    frame.className = "frame";
    caption.append(" ", frame);
    figure.append(video, caption);
    const clip = { ...wanted, figure, video, frame };
    clip.ready = new Promise((resolve) => {
      video.addEventListener("loadedmetadata", resolve, { once: true });
      video.addEventListener("error", () => { caption.append(" (cannot be played here)"); resolve(); }, { once: true });
    });
    video.src = wanted.source;
    return clip;
  }

  // -- one clock: the longest clip is the master, the others follow it

  get playable() {
    return this.clips.filter((clip) => clip.video.duration > 0);
  }

  get master() {
    return this.playable.reduce((longest, clip) => (!longest || clip.video.duration > longest.video.duration ? clip : longest), null);
  }

  get length() {
    return this.master ? this.master.video.duration : 0;
  }

  get position() {
    if (this.wanted !== null) return this.wanted;
    return this.master ? this.master.video.currentTime : 0;
  }

  /** Where a clip should be when the clock shows `position`. */
  target(clip, position) {
    const end = clip.video.duration - 0.5 / clip.fps;
    return Math.min(end, this.byShare ? (position / this.length) * clip.video.duration : position);
  }

  rate(clip) {
    return this.byShare ? (this.speed * clip.video.duration) / this.length : this.speed;
  }

  setSpeed(speed) {
    this.speed = speed;
    for (const clip of this.playable) clip.video.playbackRate = this.rate(clip);
  }

  chooseSpeed(speed) {
    this.root.querySelector("#speed").value = String(speed);
    this.setSpeed(speed);
  }

  goto(position) {
    const at = Math.max(0, Math.min(position, this.length - 0.5 / (this.master ? this.master.fps : 1)));
    this.wanted = at;
    const sought = this.playable.map((clip) => seek(clip.video, this.target(clip, at)));
    this.tell();
    return Promise.all(sought).then(() => {
      if (this.wanted === at) this.wanted = null;
      this.tell();
    });
  }

  /** Pauses, and goes to the middle of the next frame of the clip with the fewest frames a second. */
  step(by) {
    this.pause();
    const fps = Math.min(...this.playable.map((clip) => clip.fps));
    if (Number.isFinite(fps)) this.goto((Math.floor(this.position * fps + 0.01) + by + 0.5) / fps);
  }

  toggle() {
    if (this.isPlaying) this.pause();
    else this.play();
  }

  async play() {
    this.isPlaying = true;
    this.label();
    if (this.position > this.length - 1.5 / (this.master ? this.master.fps : 1)) await this.goto(0);
    else await this.goto(this.position);
    await Promise.all(this.playable.map((clip) => canPlay(clip.video)));
    if (!this.isPlaying) return;
    this.setSpeed(this.speed);
    await Promise.all(this.playable.map((clip) => clip.video.play().catch(() => undefined)));
    this.follow();
  }

  pause() {
    this.isPlaying = false;
    for (const clip of this.clips) clip.video.pause();
    this.label();
  }

  label() {
    const button = this.root.querySelector("[data-do=play]");
    button.textContent = this.isPlaying ? "⏸ Pause" : "▶ Play";
    button.setAttribute("aria-label", this.isPlaying ? "Pause" : "Play");
  }

  /** Corrects the followers at every frame that the master shows. */
  follow() {
    const master = this.master;
    if (!master) return;
    this.turn = (this.turn || 0) + 1;
    const turn = this.turn;
    const onFrame = () => {
      if (turn !== this.turn) return;
      if (this.isPlaying) this.correct(master);
      this.tell();
      next();
    };
    const next = () => {
      if (master.video.requestVideoFrameCallback) master.video.requestVideoFrameCallback(onFrame);
      else requestAnimationFrame(onFrame);
    };
    next();
    master.video.onended = () => this.ended();
  }

  correct(master) {
    if (this.wanted !== null || master.video.seeking) return;
    for (const clip of this.playable) {
      if (clip === master || clip.video.seeking) continue;
      const target = this.target(clip, master.video.currentTime);
      const drift = clip.video.currentTime - target;
      const atEnd = target >= clip.video.duration - 1 / clip.fps;
      if (atEnd && Math.abs(drift) < 1 / clip.fps) clip.video.pause();
      else if (Math.abs(drift) > JUMP_S) seek(clip.video, target);
      else clip.video.playbackRate = this.rate(clip) * pacing(drift);
      if (!atEnd && clip.video.paused) clip.video.play().catch(() => undefined);
    }
  }

  async ended() {
    if (!this.isPlaying) return;
    if (!this.root.querySelector("#loop").checked) {
      this.pause();
      return;
    }
    await this.goto(0);
    if (this.isPlaying) await this.play();
  }

  tell() {
    const position = this.position;
    this.scrub.value = this.length ? Math.round((position / this.length) * 1000) : 0;
    this.clock.textContent = `${position.toFixed(2)} of ${this.length.toFixed(2)} s`;
    for (const clip of this.playable) {
      clip.frame.textContent = `frame ${Math.floor(clip.video.currentTime * clip.fps + 0.01) + 1}`;
    }
  }

  // -- A/B: all clips in one place, one of them on top

  flip() {
    const flipped = this.stage.classList.toggle("flip");
    this.root.querySelector("[data-do=flip]").setAttribute("aria-pressed", String(flipped));
    this.face();
  }

  other() {
    if (this.clips.length) this.front = (this.front + 1) % this.clips.length;
    this.face();
  }

  face() {
    this.clips.forEach((clip, index) => clip.figure.classList.toggle("front", index === this.front));
  }
}

/** Faster or slower by the share of the drift that can be made up in half a second. */
function pacing(drift) {
  if (Math.abs(drift) < SETTLED_S) return 1;
  return 1 - Math.max(-MOST_PACING, Math.min(MOST_PACING, drift * 2));
}

function seek(video, seconds) {
  return new Promise((resolve) => {
    if (Math.abs(video.currentTime - seconds) < 1e-4 && !video.seeking) {
      resolve();
      return;
    }
    video.addEventListener("seeked", resolve, { once: true });
    video.currentTime = seconds;
  });
}

function canPlay(video) {
  return new Promise((resolve) => {
    if (video.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA || video.error) resolve();
    else {
      video.addEventListener("canplay", resolve, { once: true });
      setTimeout(resolve, 3000); // a stuck clip must not hold up the others
    }
  });
}

function makePlayer(root) {
  const boxes = [...document.querySelectorAll("[data-pick]")];
  for (const label of document.querySelectorAll("label.pick")) label.hidden = false;
  const player = new Player(root);
  const choose = () => {
    const chosen = boxes.filter((box) => box.checked);
    for (const box of boxes) box.disabled = !box.checked && chosen.length >= MOST_TILES;
    player.show(chosen.map((box) => {
      const shown = box.closest("article").querySelector("video");
      const fps = Number(box.dataset.fps);
      return { id: box.dataset.pick, title: box.dataset.title, fps, source: shown.getAttribute("src"), poster: shown.getAttribute("poster") };
    }));
  };
  boxes.slice(0, MOST_TILES).forEach((box) => { box.checked = true; });
  for (const box of boxes) box.addEventListener("change", choose);
  if (boxes.length > 1) choose();
}

// ---- plots

const PHASE_COLOURS = {
  preparing: "#8d99ae", loading: "#5b7db1", encoding_prompt: "#7b6cb3", denoising: "#c2702a",
  decoding: "#2f8f83", encoding: "#a3667a", uploading: "#9a8c3c", attempt: "#5b7db1", attempts: "#5b7db1", "between phases": "#b8b5ac",
};
const SERIES_COLOURS = ["#c2702a", "#2f8f83", "#7b6cb3", "#5b7db1", "#a3667a", "#9a8c3c", "#8d99ae", "#4d7c3a"];

/** Plotly reads a little HTML in texts; a title of a person is no HTML. */
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

const NARROW_PX = 600;
const SHORT = 15;

/** Names at an axis; cut on a narrow screen, where the table beside the plot has them whole. */
function names(whole) {
  const isNarrow = window.innerWidth < NARROW_PX;
  const cut = (name) => (isNarrow && name.length > SHORT ? `${name.slice(0, SHORT).replace(/&[^;]*$/, "")}…` : name);
  return { tickvals: whole, ticktext: whole.map(cut) };
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), muted: read("--muted"), line: read("--line"), card: read("--card"), accent: read("--accent") };
}

function layout(extra) {
  const { ink, line, card } = colours();
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: card, font: { color: ink, family: "system-ui, sans-serif", size: 12 },
    margin: { l: 60, r: 24, t: 30, b: 44 }, hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink } },
    legend: { orientation: "h", y: -0.12, yanchor: "top" }, ...extra,
  };
}

function axis(extra) {
  const { line, muted } = colours();
  return { gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { color: muted }, automargin: true, ...extra };
}

/** [figure, layout] of each plot, by the id of its place. */
const DRAWING = {
  "plot-timeline": (data) => timeline(data.timeline),
  "plot-energy": (data) => energyBars(data.energy),
  "plot-pareto-s": (data) => scoreAgainst(data.pareto_s, "seconds", " s"),
  "plot-pareto-wh": (data) => scoreAgainst(data.pareto_wh, "Wh per clip", " Wh"),
};

function timeline(data) {
  const quantities = [...new Set(data.curves.map((curve) => curve.quantity))];
  const lanes = [...new Set(data.bars.map((bar) => plain(bar[0])))];
  const top = Math.min(0.55, 0.12 + 0.035 * lanes.length);
  const height = (1 - top) / quantities.length;
  const { muted } = colours();
  const shape = {
    height: 220 + 30 * lanes.length + 130 * quantities.length,
    barmode: "overlay", hovermode: "closest", hoversubplots: "axis",
    xaxis: axis({ range: [0, data.duration_s], title: { text: "seconds since the first start" }, anchor: `y${quantities.length + 1}`, showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "dot", spikecolor: muted }),
    yaxis: axis({ domain: [1 - top + 0.02, 1], autorange: "reversed", type: "category", ...names(lanes) }),
    showlegend: true, legend: { orientation: "h", y: 1.01, yanchor: "bottom" },
  };
  const traces = barTraces(data.bars);
  quantities.forEach((quantity, index) => {
    const number = index + 2;
    const curves = data.curves.filter((curve) => curve.quantity === quantity);
    const end = 1 - top - index * height;
    shape[`yaxis${number}`] = axis({ domain: [end - height + 0.025, end], rangemode: "tozero", title: { text: `${quantity}, ${curves[0].unit}` }, nticks: 4 });
    curves.forEach((curve, order) => traces.push({
      type: "scatter", mode: "lines", name: plain(curve.title), x: curve.x, y: curve.y, yaxis: `y${number}`, connectgaps: false,
      showlegend: false, line: { width: 1.5, color: SERIES_COLOURS[(index + order * 4) % SERIES_COLOURS.length] },
      hovertemplate: `%{y:.4~g} ${curve.unit} at %{x:.1f} s<extra>${plain(curve.title)}</extra>`,
    }));
  });
  return [traces, layout(shape)];
}

function barTraces(bars) {
  const phases = [...new Set(bars.map((bar) => bar[1]))];
  return phases.map((phase) => {
    const found = bars.filter((bar) => bar[1] === phase);
    return {
      type: "bar", orientation: "h", name: plain(phase), y: found.map((bar) => plain(bar[0])), base: found.map((bar) => bar[2]),
      x: found.map((bar) => bar[3]), customdata: found.map((bar) => [plain(bar[4]), bar[3]]), width: 0.7,
      marker: {
        color: PHASE_COLOURS[phase] || "#8d99ae", line: { width: 0 },
        pattern: { shape: found.map((bar) => (bar[4] === "completed" ? "" : "/")), size: 6, solidity: 0.3 },
      },
      hovertemplate: `%{y}: ${plain(phase)}, %{customdata[1]:.2f} s (%{customdata[0]})<extra></extra>`,
    };
  });
}

function energyBars(data) {
  const jobs = data.jobs.map((name, index) => plain(`${index + 1}. ${name}`));
  const traces = data.phases.map(({ phase, wh }) => ({
    type: "bar", orientation: "h", name: plain(phase), y: jobs, x: wh, marker: { color: PHASE_COLOURS[phase] || "#8d99ae" },
    hovertemplate: `%{y}: ${plain(phase)}, %{x:.4~g} Wh<extra></extra>`,
  }));
  const shape = {
    barmode: "stack", height: 140 + 28 * jobs.length, xaxis: axis({ title: { text: "Wh" }, rangemode: "tozero" }),
    yaxis: axis({ autorange: "reversed", type: "category", ...names(jobs) }), legend: { orientation: "h", y: 1.02, yanchor: "bottom", traceorder: "normal" },
  };
  return [traces, layout(shape)];
}

function scoreAgainst(data, title, unit) {
  const { accent, ink } = colours();
  const points = data.points;
  const size = points.map((point) => (point.gib === null ? 9 : 8 + Math.min(22, Math.sqrt(point.gib) * 2.2)));
  const traces = [
    {
      type: "scatter", mode: "lines", name: "no other clip beats these in both", x: data.front.map(([x]) => x), y: data.front.map(([, y]) => y),
      line: { color: accent, width: 1.5, dash: "dot", shape: "hv" }, hoverinfo: "skip",
    },
    {
      type: "scatter", mode: points.length > 14 ? "markers" : "markers+text", name: "clips", x: points.map((point) => point.x),
      y: points.map((point) => point.y), text: points.map((point) => plain(point.model)), textposition: "top center", cliponaxis: false,
      marker: { size, color: SERIES_COLOURS[1], line: { width: 1, color: ink } },
      error_y: { type: "data", symmetric: false, array: points.map((p) => p.high - p.y), arrayminus: points.map((p) => p.y - p.low), thickness: 1, width: 3, color: ink },
      hovertemplate: `%{text}: %{y:.1f}/10 for %{x:.4~g}${unit}<extra></extra>`,
    },
  ];
  const shape = {
    height: 380, showlegend: false,
    xaxis: axis({ title: { text: title }, rangemode: "tozero" }), yaxis: axis({ title: { text: "score, 0 to 10" }, range: [-0.2, 10.4] }),
  };
  return [traces, layout(shape)];
}

function drawPlots() {
  const data = JSON.parse(document.getElementById("figures").textContent);
  for (const [id, draw] of Object.entries(DRAWING)) {
    const place = document.getElementById(id);
    if (place && window.Plotly) window.Plotly.react(place, ...draw(data), { displayModeBar: false, responsive: true });
  }
}

// ---- all of it

for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
const playerPlace = document.getElementById("player");
if (playerPlace) makePlayer(playerPlace);
drawPlots();
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
