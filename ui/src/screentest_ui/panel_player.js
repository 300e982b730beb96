// The synced player of the panel: up to four clips on one transport. Streamlit calls the default export again at every
// rerun; as long as the clips are the same nothing is built anew, so that the position stays.

const SEEK_ABOVE_S = 0.12; // a larger drift is jumped over, a smaller one is caught up with the rate
const CATCH_UP = 0.05; // of the rate
const ANSWERS = { 1: "left", 2: "right", 3: "tie", 4: "both-bad" };

export default function (component) {
  const root = component.parentElement.querySelector(".player");
  const same = JSON.stringify([component.data.clips.map((clip) => clip.id), component.data.pair]);
  if (root.screentest?.same !== same) {
    root.screentest?.stop();
    root.screentest = new Player(root, component.data, same);
  }
  root.screentest.setTriggerValue = component.setTriggerValue;
  root.screentest.listen();
  return () => root.screentest.unlisten();
}

class Player {
  constructor(root, data, same) {
    Object.assign(this, { root, data, same, rate: 1, flipped: -1, stretched: false, place_s: 0 });
    this.place = `screentest-player:${data.place}`;
    this.onKey = (event) => this.key(event);
    this.build();
    this.restore();
  }

  // ---- the parts; text of a person only ever becomes text

  build() {
    const row = (name) => this.root.querySelector(`.${name}`);
    row("clips").replaceChildren(...this.data.clips.map((clip, index) => this.figure(clip, index)));
    row("answers").hidden = !this.data.pair;
    row("transport").hidden = this.data.pair;
    for (const part of this.root.querySelectorAll(".of-several")) part.hidden = this.data.clips.length < 2;
    this.videos = [...this.root.querySelectorAll("video")];
    this.master = this.videos[0];
    this.scrub = row("scrub");
    this.clock = row("clock");
    for (const button of this.root.querySelectorAll("button[data-do]")) {
      button.onclick = () => this.act(button.dataset.do, button.dataset.with);
    }
    this.scrub.oninput = () => this.seek(Number(this.scrub.value) * this.length());
    row("rate").onchange = (event) => this.setRate(Number(event.target.value));
    row("stretch").onchange = (event) => this.stretch(event.target.checked);
  }

  figure(clip, index) {
    const figure = document.createElement("figure");
    const video = document.createElement("video");
    Object.assign(video, { src: clip.url, muted: true, playsInline: true, preload: "auto", loop: this.data.pair });
    video.setAttribute("aria-label", clip.label);
    video.onloadedmetadata = () => this.chooseMaster();
    video.onended = () => video === this.master && this.pause();
    if (this.data.pair) video.oncanplay = () => this.play();
    const caption = document.createElement("figcaption");
    caption.textContent = clip.label;
    video.onerror = () => (caption.textContent = `${clip.label}: the depot does not give this clip`);
    figure.dataset.index = index;
    figure.append(video, caption);
    return figure;
  }

  // ---- time: the longest clip leads

  chooseMaster() {
    const known = this.videos.filter((video) => video.duration);
    this.master = known.reduce((longest, video) => (video.duration > longest.duration ? video : longest), known[0]);
    this.setRate(this.rate);
    // A clip that comes later than the others begins where they stand.
    if (!this.playing) this.seek(this.place_s);
  }

  length() {
    return this.master.duration || 0;
  }

  // Seconds at which `video` should be when the leading clip is at `at_s`.
  wanted(video, at_s) {
    const end_s = video.duration || 0;
    const same = this.stretched && this.length() ? (at_s * end_s) / this.length() : at_s;
    return Math.min(same, Math.max(end_s - 0.001, 0));
  }

  ownRate(video) {
    return this.stretched && this.length() && video.duration ? (this.rate * video.duration) / this.length() : this.rate;
  }

  play() {
    this.playing = true;
    if (this.master.ended) this.seek(0);
    for (const video of this.videos) video.play().catch(() => {});
    this.watch();
    this.show();
  }

  pause() {
    this.playing = false;
    for (const video of this.videos) video.pause();
    this.seek(this.master.currentTime);
  }

  seek(at_s) {
    this.place_s = at_s;
    const inside = Math.min(Math.max(at_s, 0), this.length());
    for (const video of this.videos) video.currentTime = video === this.master ? inside : this.wanted(video, inside);
    this.show();
    this.remember();
  }

  setRate(rate) {
    this.rate = rate;
    for (const video of this.videos) video.playbackRate = this.ownRate(video);
  }

  stretch(on) {
    this.stretched = on;
    this.setRate(this.rate);
    this.seek(this.master.currentTime);
  }

  // At every frame of the leading clip the others are brought to its time.
  watch() {
    const leading = this.master;
    if (this.watched === leading) return;
    this.watched = leading;
    const frame = (_, facts) => {
      if (!this.playing || leading !== this.master) {
        this.watched = null;
        return;
      }
      for (const video of this.videos) if (video !== leading) this.follow(video, facts.mediaTime);
      this.show();
      leading.requestVideoFrameCallback(frame);
    };
    leading.requestVideoFrameCallback(frame);
  }

  follow(video, at_s) {
    const drift_s = this.wanted(video, at_s) - video.currentTime;
    if (Math.abs(drift_s) > SEEK_ABOVE_S) {
      video.currentTime = this.wanted(video, at_s);
      if (video.paused && this.wanted(video, at_s) < video.duration - SEEK_ABOVE_S) video.play().catch(() => {});
      return;
    }
    const catch_up = Math.max(-CATCH_UP, Math.min(CATCH_UP, drift_s));
    video.playbackRate = this.ownRate(video) * (1 + catch_up);
  }

  // ---- what a person does

  act(what, value) {
    const frame_s = 1 / Math.min(...this.data.clips.map((clip) => clip.fps));
    const at_s = this.master.currentTime;
    const acts = {
      toggle: () => (this.playing ? this.pause() : this.play()),
      back: () => (this.pause(), this.seek(at_s - frame_s)),
      on: () => (this.pause(), this.seek(at_s + frame_s)),
      start: () => this.seek(0),
      flip: () => this.flip(),
      answer: () => this.setTriggerValue("answer", value),
    };
    acts[what]();
  }

  // One clip at a time in the same place; after the last one all of them stand side by side again.
  flip() {
    this.flipped = this.flipped + 1 < this.videos.length ? this.flipped + 1 : -1;
    this.root.classList.toggle("flipped", this.flipped >= 0);
    for (const figure of this.root.querySelectorAll("figure")) {
      figure.classList.toggle("front", Number(figure.dataset.index) === this.flipped);
    }
  }

  key(event) {
    const into = event.composedPath()[0];
    const typing = into.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(into.tagName);
    if ((typing && into !== this.scrub) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.data.pair) {
      if (!(event.key in ANSWERS) || event.repeat) return;
      this.act("answer", ANSWERS[event.key]);
    } else {
      const keys = { k: "toggle", " ": "toggle", ",": "back", ".": "on", f: "flip", 0: "start" };
      const inside = event.composedPath().includes(this.root);
      if (!(event.key in keys) || !inside || into.tagName === "BUTTON") return;
      this.act(keys[event.key]);
    }
    event.preventDefault();
  }

  listen() {
    document.addEventListener("keydown", this.onKey);
  }

  unlisten() {
    document.removeEventListener("keydown", this.onKey);
  }

  stop() {
    this.unlisten();
    this.pause();
  }

  // ---- what is seen and kept

  show() {
    const at_s = this.master.currentTime || 0;
    this.scrub.value = this.length() ? at_s / this.length() : 0;
    this.clock.textContent = `${at_s.toFixed(2)} of ${this.length().toFixed(2)} s`;
    const button = this.root.querySelector("[data-do=toggle]");
    button.textContent = this.playing ? "Pause" : "Play";
    button.setAttribute("aria-pressed", String(Boolean(this.playing)));
  }

  remember() {
    sessionStorage.setItem(this.place, String(this.playing ? this.master.currentTime : this.place_s));
  }

  restore() {
    this.place_s = this.data.pair ? 0 : Number(sessionStorage.getItem(this.place));
    window.addEventListener("pagehide", () => this.remember(), { once: true });
  }
}
