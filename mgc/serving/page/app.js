// A file goes to the API; what comes back is drawn. No library, no inline style: the page's policy allows neither.
"use strict";

const $ = (id) => document.getElementById(id);
const body = document.body;
const audio = $("audio");
const stage = $("stage");
const HUES = ["#5b7fb9", "#e39a4f", "#62a87c", "#d0675f", "#9a7bbd", "#5fb0b7", "#d9b44a", "#a9796a", "#d98aa8", "#8b93a1"];
const MAP = [[13, 10, 23], [59, 28, 98], [140, 41, 115], [219, 80, 92], [252, 159, 92], [252, 243, 190]];
const STEP = 5; // seconds of an arrow key

let genres = [];
let shown = null; // the answer on the page
let total = 0; // seconds from the left to the right of its pictures
let place = 0; // seconds
let sending = null;

const colour = (genre) => {
  const number = Math.max(genres.indexOf(genre), 0);
  return HUES[number] || `hsl(${(number * 137.5) % 360} 42% 58%)`;
};
const percent = (share) => (share > 0 && share < 0.005 ? "< 1%" : `${Math.round(100 * share)}%`);
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const ranked = (probabilities) => Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
const element = (name, className, text) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
};

// The server

const bearer = () => {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
};

async function ask(address, options) {
  const response = await fetch(address, { ...options, headers: bearer() });
  const answer = await response.json().catch(() => ({}));
  if (response.status === 401) wantToken(sessionStorage.getItem("token") !== null);
  if (!response.ok) throw new Error(answer.error || `the server answers ${response.status}`);
  return answer;
}

function wantToken(wrong) {
  sessionStorage.removeItem("token");
  $("access").hidden = false;
  $("choose").hidden = true;
  $("token").value = "";
  $("token").focus();
  fail(wrong ? "That is not the server's token." : "");
}

async function greet() {
  try {
    const health = await ask("healthz");
    genres = health.genres;
    $("model").textContent = `Model ${health.model} · ${genres.length} genres: ${genres.join(", ")}`;
    $("access").hidden = true;
    $("choose").hidden = false;
    fail("");
  } catch (error) {
    if ($("access").hidden) fail(error.message);
  }
}

async function send(file) {
  if (!file) return;
  sending?.abort();
  const mine = (sending = new AbortController());
  fail("");
  audio.pause();
  body.classList.add("busy");
  $("state").textContent = `Listening to ${file.name} …`;
  try {
    const found = await ask("v1/predict?spectrogram=1", { method: "POST", body: file, signal: mine.signal });
    show(file, found);
  } catch (error) {
    if (mine.signal.aborted) return;
    clear();
    fail(error instanceof TypeError ? "The server does not answer." : `${file.name}: ${error.message}`);
  }
  if (sending === mine) {
    body.classList.remove("busy");
    $("state").textContent = "";
  }
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

function clear() {
  shown = null;
  $("answer").hidden = true;
  body.classList.remove("answered");
}

// The answer

function show(file, found) {
  shown = found;
  place = 0;
  const heard = found.windows[found.windows.length - 1].end;
  total = found.seconds - heard < 0.5 ? heard : found.seconds;
  if (audio.src) URL.revokeObjectURL(audio.src);
  $("play").disabled = false;
  audio.src = URL.createObjectURL(file);
  $("name").textContent = file.name;
  $("genre").textContent = found.genre;
  $("confidence").textContent = percent(found.confidence);
  $("sureness").replaceChildren(...sureness(found));
  $("warning").textContent = found.warning ? `Worth less than usual: ${found.warning}.` : "";
  $("warning").hidden = !found.warning;
  $("bars").replaceChildren(...ranked(found.probabilities).map(bar));
  $("answer").hidden = false;
  body.classList.add("answered");
  stage.setAttribute("aria-valuemax", total.toFixed(1));
  draw();
  move(0);
  $("genre").focus({ preventScroll: true });
}

function sureness(found) {
  if (!found.unsure) return [`Sure: from ${percent(found.threshold)} on, answers of this model were right often enough.`];
  const why = found.threshold === null
    ? "of no confidence is it known that answers of this model are right often enough."
    : `answers of this model were right often enough only from ${percent(found.threshold)} on.`;
  return [element("strong", "", "Unsure"), `The likeliest genre, but ${why}`];
}

function bar([genre, share]) {
  const item = element("li");
  const name = element("span", "genre");
  const mark = element("i");
  const track = element("div", "track");
  const fill = element("div", "fill");
  mark.style.background = fill.style.background = colour(genre);
  fill.style.width = `${100 * share}%`;
  name.append(mark, genre);
  track.append(fill);
  item.append(name, track, element("span", "share", percent(share)));
  return item;
}

// Pictures: both have the file's whole length from left to right

function draw() {
  if (!shown) return;
  drawSpectrogram(shown.spectrogram);
  drawTimeline(shown.windows);
  drawTicks();
}

function fitted(id) {
  const canvas = $(id);
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  return canvas;
}

function heat(value) {
  const at = (value / 255) * (MAP.length - 1);
  const low = Math.min(Math.floor(at), MAP.length - 2);
  return MAP[low].map((part, index) => part + (at - low) * (MAP[low + 1][index] - part));
}

function drawSpectrogram({ width, height, end, pixels }) {
  const bytes = Uint8Array.from(atob(pixels), (letter) => letter.charCodeAt(0));
  const colours = Array.from({ length: 256 }, (_, value) => heat(value));
  const picture = new ImageData(width, height);
  bytes.forEach((value, index) => picture.data.set([...colours[value], 255], 4 * index));
  const source = Object.assign(document.createElement("canvas"), { width, height });
  source.getContext("2d").putImageData(picture, 0, 0);
  const canvas = fitted("spectrogram");
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width * Math.min(end / total, 1), canvas.height);
}

function drawTimeline(windows) {
  const canvas = fitted("timeline");
  const context = canvas.getContext("2d");
  const order = ranked(shown.probabilities).map(([genre]) => genre);
  const last = windows[windows.length - 1];
  const points = windows.map((each) => [(each.start + each.end) / 2, each.probabilities]);
  points.unshift([windows[0].start, windows[0].probabilities]); // flat beyond the outer windows' middles
  points.push([last.end, last.probabilities]);
  context.strokeStyle = getComputedStyle(body).getPropertyValue("--card");
  let floor = points.map(() => 0);
  for (const genre of order) {
    const top = points.map(([, shares], index) => floor[index] + shares[genre]);
    const x = (index) => (points[index][0] / total) * canvas.width;
    const y = (share) => (1 - share) * canvas.height;
    context.beginPath();
    points.forEach((_, index) => context.lineTo(x(index), y(floor[index])));
    for (let index = points.length - 1; index >= 0; index -= 1) context.lineTo(x(index), y(top[index]));
    context.closePath();
    context.fillStyle = colour(genre);
    context.fill();
    context.stroke();
    floor = top;
  }
}

function drawTicks() {
  const most = Math.max(2, Math.floor($("ticks").clientWidth / 90));
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600].find((each) => total / each <= most) || 1200;
  const ticks = [];
  for (let at = 0; at <= total + 0.5; at += step) {
    const tick = element("span", at > 0.97 * total ? "last" : "", clock(at));
    tick.style.left = `${Math.min((100 * at) / total, 100)}%`;
    ticks.push(tick);
  }
  $("ticks").replaceChildren(...ticks);
}

// Playing

function at(seconds) {
  const centre = (each) => Math.abs((each.start + each.end) / 2 - seconds);
  return shown.windows.reduce((best, each) => (centre(each) < centre(best) ? each : best));
}

function move(seconds) {
  place = seconds;
  $("cursor").style.left = `${Math.min((100 * seconds) / total, 100)}%`;
  $("clock").textContent = `${clock(seconds)} / ${clock(Math.round(total))}`;
  const [genre, share] = ranked(at(seconds).probabilities)[0];
  const mark = element("i");
  mark.style.background = colour(genre);
  $("here").replaceChildren(mark, `${genre} ${percent(share)}`);
  stage.setAttribute("aria-valuenow", seconds.toFixed(1));
  stage.setAttribute("aria-valuetext", `${clock(seconds)} of ${clock(Math.round(total))}: ${genre} ${percent(share)}`);
}

function seek(seconds) {
  if (!shown) return;
  const wanted = Math.max(0, Math.min(seconds, total));
  if (audio.readyState > 0) audio.currentTime = wanted;
  move(wanted);
}

function toggle() {
  if ($("play").disabled) return;
  if (!audio.paused) return audio.pause();
  if (place >= total - 0.2) seek(0);
  audio.play().catch(() => {});
}

function follow() {
  if (shown && !audio.paused) {
    move(Math.min(audio.currentTime, total));
    requestAnimationFrame(follow);
  }
}

audio.addEventListener("play", () => {
  body.classList.add("playing");
  $("play").setAttribute("aria-label", "Pause");
  follow();
});
audio.addEventListener("pause", () => {
  body.classList.remove("playing");
  $("play").setAttribute("aria-label", "Play");
});
audio.addEventListener("loadedmetadata", () => {
  if (place) audio.currentTime = place;
});
audio.addEventListener("error", () => {
  $("play").disabled = true;
  $("play").title = "This browser cannot play the file";
});
$("play").addEventListener("click", toggle);

const pointed = (event) => {
  const box = stage.getBoundingClientRect();
  seek(((event.clientX - box.left) / box.width) * total);
};
stage.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  stage.setPointerCapture(event.pointerId);
  pointed(event);
});
stage.addEventListener("pointermove", (event) => {
  if (stage.hasPointerCapture(event.pointerId)) pointed(event);
});
stage.addEventListener("keydown", (event) => {
  const to = { ArrowRight: place + STEP, ArrowUp: place + STEP, ArrowLeft: place - STEP, ArrowDown: place - STEP };
  Object.assign(to, { Home: 0, End: total });
  if (event.key in to) seek(to[event.key]);
  else if (event.key === " ") toggle();
  else return;
  event.preventDefault();
});

// Choosing

$("file").addEventListener("change", (event) => {
  send(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    body.classList.add("over");
  });
}
addEventListener("dragleave", (event) => event.relatedTarget || body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  body.classList.remove("over");
  if (!$("choose").hidden) send(event.dataTransfer.files[0]);
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  greet();
});
addEventListener("resize", draw);
greet();
