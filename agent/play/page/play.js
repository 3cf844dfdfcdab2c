"use strict";
// The page of `lssvwm play`. It sends one message at a time and waits for the reply "ready".
// All content is set as text or drawn on a canvas; nothing of a reply is read as HTML.

const byId = (id) => document.getElementById(id);
const PLAN_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
const SWATCHES = { red: "#eb2d28", green: "#28cd46", blue: "#3c5fff", magenta: "#e13ce1", cyan: "#32d7e1", orange: "#ff8214" };
const POINTS = 300;            // steps in the plots
const MAP_EVERY = 600;         // milliseconds between maps while walking
const REPEAT = 120;            // milliseconds between steps while a key or button is held
const KEYS = {
  ArrowLeft: "left", a: "left", ArrowRight: "right", d: "right", ArrowUp: "forward", w: "forward",
  ArrowDown: "back", s: "back", " ": "stay",
};
const NAMES = { forward: ["forward", "up"], back: ["back", "backward", "down"], stay: ["stay", "noop", "done"] };
const SYMBOLS = { left: "←", right: "→", forward: "↑", up: "↑", down: "↓", stay: "•" };
const MODES = {
  open: "Eyes open: the model predicts the next frame, then sees the real one.",
  closed: "Eyes closed: both walk. The model imagines and sees nothing.",
  imagine: "Imagine only: the real world stands still. Leave imagination to return to it.",
};

let socket, about = null, state = null, running = null, waiting = null, plans = [], chosen = 0, cross = null;
let lastMap = 0, mapTimer = 0, map = null, lastStep = 0, clips = 0, file = null;
const points = [];

// ---- conversation

function connect() {
  const address = new URL("socket", location.href);
  address.protocol = address.protocol.replace("http", "ws");
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onmessage = receive;
  socket.onclose = (event) => {
    running = null;
    const refused = document.body.dataset.refused;
    notice(refused || (event.code === 1009 ? "The file is too large. Reload this page." :
      "The server has stopped, or the connection is lost. Start `lssvwm play` again, and open its new address."));
    for (const part of document.querySelectorAll("button, select, input")) part.disabled = true;
    if (waiting) waiting.done(false);
  };
}

function receive(event) {
  if (typeof event.data !== "string") return download(event.data);
  const reply = JSON.parse(event.data);
  if (reply.type === "ready") {
    const done = waiting.done;
    waiting = null;
    return done(!document.body.dataset.failed);
  }
  ({ models, about: showAbout, state: showState, branches: showBranches, map: showMap, plans: showPlans, goal: showGoal,
    comparison: showComparison, file: (r) => { file = r.name; }, error: fail })[reply.type](reply);
}

function fail(reply) {
  document.body.dataset.failed = "yes";
  if (!waiting) document.body.dataset.refused = reply.text;
  say(reply.text, true);
}

// Send a message, and return whether it succeeded. Messages wait for one another.
let queue = Promise.resolve(true);
function send(message) {
  const turn = () => new Promise((done) => {
    if (socket.readyState !== WebSocket.OPEN) return done(false);
    waiting = { done };
    delete document.body.dataset.failed;
    socket.send(message instanceof ArrayBuffer ? message : JSON.stringify(message));
  });
  queue = queue.then(turn);
  return queue;
}

function notice(text) { byId("notice").textContent = text; byId("notice").hidden = false; }
function say(text, wrong) {
  const status = byId("status");
  status.textContent = text;
  status.style.color = wrong ? "var(--danger)" : "";
}
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// ---- pictures

function paint(canvas, frame) {
  if (!frame) { canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height); return; }
  const bytes = atob(frame.rgb), pixels = new ImageData(frame.width, frame.height);
  for (let from = 0, to = 0; from < bytes.length; from += 3, to += 4) {
    pixels.data[to] = bytes.charCodeAt(from);
    pixels.data[to + 1] = bytes.charCodeAt(from + 1);
    pixels.data[to + 2] = bytes.charCodeAt(from + 2);
    pixels.data[to + 3] = 255;
  }
  canvas.width = frame.width;
  canvas.height = frame.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

// ---- replies

function models(reply) {
  byId("model").replaceChildren(...reply.names.map((name) => new Option(name.split("/").pop() || name, name)));
  send({ type: "start", model: reply.names[0] });
}

function showAbout(reply) {
  about = reply;
  points.length = 0;
  plans = [];
  map = null;
  for (const id of ["plans", "moves", "ask"]) byId(id).replaceChildren();
  byId("comparison").hidden = true;
  byId("goal").value = "task";
  byId("goal-pictures").hidden = true;
  byId("unlimited").checked = reply.unlimited;
  byId("guide").hidden = !reply.guide;
  byId("demo").hidden = !(reply.guide && reply.objects.length);
  byId("change").hidden = !reply.objects.length;
  byId("goal").querySelector("[value=place]").disabled = !reply.map;
  byId("window").textContent = `Keep the last ${reply.window} frames`;
  byId("facts").replaceChildren(...Object.entries(reply.model.facts).map(([name, value]) => {
    const fact = element("div");
    fact.append(element("dt", name), element("dd", value));
    return fact;
  }));
  byId("card-text").textContent = reply.model.text;
  byId("card-text").hidden = !reply.model.text;
  byId("planner").replaceChildren(...reply.planners.map((name) => new Option(name, name)));
  setBudget(reply.planner);
  if (reply.goal_image) { paint(byId("goal-image"), reply.goal_image); byId("goal-note").textContent = "goal image of the task"; byId("goal-pictures").hidden = false; }
  makePad();
  reply.objects.forEach((name, index) => {
    byId("moves").append(objectButton(`Move the ${name} ball`, name, () => move(index, name)));
    byId("ask").append(objectButton(name, name, () => ask(index, name)), " ");
  });
  if (reply.objects.length) byId("ask").prepend("or ask for ");
  scheduleMap(0);
  say(reply.guide ? "Walk with the arrow keys or the buttons, or press Show me." : "Walk with the arrow keys or the buttons.");
}

function objectButton(text, name, action) {
  const button = element("button", text), dot = element("span", "", "swatch");
  dot.style.background = SWATCHES[name] || "gray";
  button.prepend(dot);
  button.onclick = action;
  return button;
}

function showState(reply) {
  state = reply;
  const imagines = reply.mode === "imagine", seen = reply.mode === "open";
  paint(byId("real"), reply.real);
  paint(byId("imagined"), reply.imagined);
  byId("real-note").textContent = imagines ? "stands still" : `step ${reply.step}`;
  byId("imagined-note").textContent = !reply.imagined ? "nothing yet" : seen ? "one step ahead" : `${reply.ahead} steps without seeing`;
  document.querySelector(".view.real").classList.toggle("still", imagines);
  document.querySelector(".view.imagined").classList.toggle("imagining", !seen);
  for (const button of document.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === reply.mode);
  byId("bytes").textContent = `${(reply.bytes / 1000).toFixed(1)} kB, constant`;
  byId("age").textContent = reply.age === null ? "not yet" : reply.age === 0 ? "in view" : `${reply.age} steps ago`;
  byId("ahead").textContent = reply.ahead;
  byId("compare").disabled = !imagines || !reply.ahead;
  byId("guide").disabled = imagines || reply.ended;
  const rewind = byId("rewind");
  rewind.max = Math.max(1, reply.history);
  rewind.value = rewind.max;
  rewind.disabled = !reply.history;
  byId("rewind-out").textContent = "now";
  if (reply.predicted !== null) points.push({ mode: reply.mode, error: reply.error && reply.error.percent, predicted: reply.predicted, reward: reply.reward });
  points.splice(0, points.length - POINTS);
  byId("error-now").textContent = reply.error ? `${reply.error.percent.toFixed(1)} % (${reply.error.psnr.toFixed(1)} dB)` : imagines ? "unknown until compared" : "";
  byId("reward-now").textContent = reply.predicted === null ? "" : reply.predicted.toFixed(2);
  drawPlots();
  if (reply.ended) say(`The real episode has ended (${reply.outcome}). Rewind, imagine on, or start a new episode.`);
  scheduleMap(MAP_EVERY);
}

function showBranches(reply) {
  byId("fork").disabled = reply.branches.length >= about.branches;
  byId("branches").replaceChildren(...reply.branches.map((branch, index) => {
    const box = element("div", "", "branch"), open = element("button", branch.label), drop = element("button", "×", "drop");
    const canvas = element("canvas");
    paint(canvas, branch.frame);
    open.prepend(canvas);
    open.title = "Return to this moment";
    open.setAttribute("aria-label", `Return to branch ${index + 1}, ${branch.label}`);
    open.onclick = async () => { stop(); if (await send({ type: "branch", index })) { clearPlans(); say("Back at this branch: world, memory and mode."); } };
    drop.setAttribute("aria-label", `Drop branch ${index + 1}`);
    drop.onclick = () => send({ type: "drop", index });
    box.setAttribute("role", "listitem");
    box.append(open, drop);
    return box;
  }));
}

function showComparison(reply) {
  byId("comparison").hidden = false;
  const rows = [["imagined", reply.imagined], ["real", reply.real]];
  const shown = rows.map(([name, strip]) => {
    const row = element("div"), canvas = element("canvas"), image = new Image();
    image.onload = () => {
      canvas.width = image.width; canvas.height = image.height;
      canvas.style.width = `${image.width * 72 / image.height}px`;
      canvas.getContext("2d").drawImage(image, 0, 0);
    };
    image.src = strip.image;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${strip.count} ${name} frames`);
    row.append(element("div", name, "label"), canvas);
    return row;
  });
  byId("strips").replaceChildren(...shown);
  const mean = reply.errors.reduce((sum, x) => sum + x, 0) / reply.errors.length;
  byId("comparison-note").textContent = `${reply.errors.length} steps, mean error ${mean.toFixed(1)} %, last ${reply.errors.at(-1).toFixed(1)} %.` +
    (reply.ended ? " The real episode ends here." : "") + " The same actions were carried out in a copy of the real world.";
  byId("comparison").scrollIntoView({ block: "nearest" });
}

// ---- maps

function scheduleMap(delay) {
  if (mapTimer) return;
  const wait = Math.max(0, lastMap + delay - Date.now());
  mapTimer = setTimeout(async () => { await send({ type: "map" }); mapTimer = 0; lastMap = Date.now(); }, wait + 30);
}

function showMap(reply) {
  byId("real-map-view").hidden = !reply.real;
  if (reply.real) byId("real-map").src = reply.real;
  byId("map-view").hidden = !about.map;
  byId("map-empty").hidden = Boolean(reply.memory);
  byId("map-empty").textContent = "Nothing is known: memory has seen no place yet.";
  map = reply.memory;
  if (!map) return byId("map").getContext("2d").clearRect(0, 0, 480, 480);
  map.picture = new Image();
  map.picture.onload = drawMap;
  map.picture.src = map.image;
}

function mapBox() {
  const [rows, columns] = map.tokens, unit = 480 / Math.max(rows, columns);
  return { left: (480 - columns * unit) / 2, top: (480 - rows * unit) / 2, width: columns * unit, height: rows * unit, unit };
}

function drawMap() {
  const canvas = byId("map"), pen = canvas.getContext("2d"), box = mapBox();
  const at = ([x, y]) => [box.left + x * box.width, box.top + y * box.height];
  pen.clearRect(0, 0, 480, 480);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(map.picture, box.left, box.top, box.width, box.height);
  const line = (path, ink, width, dash, offset = 0) => {
    if (path.length < 2) return;
    for (const [style, size] of [["#14141899", width + 2], [ink, width]]) {
      pen.strokeStyle = style; pen.lineWidth = size; pen.setLineDash(dash); pen.lineJoin = pen.lineCap = "round";
      pen.beginPath();
      path.map(at).forEach(([x, y], i) => (i ? pen.lineTo(x + offset, y + offset) : pen.moveTo(x + offset, y + offset)));
      pen.stroke();
    }
    pen.setLineDash([]);
  };
  line(map.observed, "#ffffff", 3, []);
  line([...map.observed.slice(-1), ...map.imagined], "#ff8c1a", 3, [6, 6]);
  map.routes.forEach((route, i) => line([map.agent, ...route], PLAN_COLOURS[i], i === chosen ? 6 : 3, [], (i - 1.5) * 3));
  const [x, y] = at(map.agent), size = Math.max(9, box.unit / 3.2);
  pen.save();
  pen.translate(x, y); pen.rotate(map.agent[2]);
  pen.fillStyle = "#ffffff"; pen.strokeStyle = "#141418"; pen.lineWidth = 3;
  pen.beginPath(); pen.moveTo(0, -size); pen.lineTo(size * .8, size * .8); pen.lineTo(-size * .8, size * .8); pen.closePath();
  pen.stroke(); pen.fill();
  pen.restore();
  if (cross) {
    const [cx, cy] = at(cross);
    pen.strokeStyle = "#b3261e"; pen.lineWidth = 3;
    pen.strokeRect(cx - box.unit / 2, cy - box.unit / 2, box.unit, box.unit);
  }
}

async function goTo(x, y) {
  if (!map || x < 0 || x > 1 || y < 0 || y > 1) return;
  stop();
  cross = [x, y];
  drawMap();
  byId("goal").value = "place";
  if (!await send({ type: "goal", goal: "place", x, y })) return;
  if (about.planners.includes("beam")) setBudget({ planner: "beam", candidates: 32, iterations: 1, horizon: 40 });
  if (await makePlan()) follow(0);
}

byId("map").onclick = (event) => {
  if (!map) return;
  const area = byId("map").getBoundingClientRect(), box = mapBox(), scale = 480 / area.width;
  goTo(((event.clientX - area.left) * scale - box.left) / box.width, ((event.clientY - area.top) * scale - box.top) / box.height);
};
byId("map").onkeydown = (event) => {
  if (!map || !(event.key.startsWith("Arrow") || event.key === "Enter")) return;
  event.preventDefault(); event.stopPropagation();
  const [rows, columns] = map.tokens;
  cross = cross || [map.agent[0], map.agent[1]];
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!by) return goTo(...cross);
  cross = [Math.min(1, Math.max(0, cross[0] + by[0] / columns)), Math.min(1, Math.max(0, cross[1] + by[1] / rows))];
  drawMap();
};

// ---- plots

function drawPlots() {
  const errors = points.map((p) => p.error), top = Math.max(5, ...errors.map((e) => e || 0));
  plot(byId("error-plot"), 0, top, (p) => p.error, null, "%");
  const values = points.flatMap((p) => [p.predicted, p.reward || 0]);
  plot(byId("reward-plot"), Math.min(0, ...values), Math.max(1, ...values), (p) => p.predicted, (p) => p.reward, "");
}

function plot(canvas, low, high, line, dots, unit) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio; canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const left = 40, right = width - 6, foot = height - 8, head = 10;
  const x = (i) => left + (right - left) * i / Math.max(60, points.length - 1);
  const y = (value) => foot - (foot - head) * (value - low) / (high - low || 1);
  points.forEach((p, i) => {
    if (p.mode === "open") return;
    pen.fillStyle = p.mode === "closed" ? "#ff8c1a2b" : "#ff8c1a4d";
    const from = Math.round(x(i - .5));
    pen.fillRect(from, head, Math.round(x(i + .5)) - from, foot - head);
  });
  pen.font = "11px system-ui, sans-serif"; pen.textAlign = "right"; pen.textBaseline = "middle";
  for (const value of [low, (low + high) / 2, high]) {
    pen.fillStyle = colour("--dim"); pen.strokeStyle = colour("--line"); pen.lineWidth = 1;
    pen.fillText(value.toFixed(high > 4 ? 0 : 1) + unit, left - 6, y(value));
    pen.beginPath(); pen.moveTo(left, y(value)); pen.lineTo(right, y(value)); pen.stroke();
  }
  pen.strokeStyle = colour("--imagined"); pen.lineWidth = 2; pen.lineJoin = "round"; pen.beginPath();
  let drawing = false;
  points.forEach((p, i) => {
    const value = line(p);
    if (value === null || value === undefined) { drawing = false; return; }
    if (drawing) pen.lineTo(x(i), y(value)); else pen.moveTo(x(i), y(value));
    drawing = true;
  });
  pen.stroke();
  if (!dots) return;
  pen.fillStyle = colour("--real");
  points.forEach((p, i) => { if (dots(p)) { pen.beginPath(); pen.arc(x(i), y(dots(p)), 4, 0, 7); pen.fill(); } });
}

// ---- walking

function makePad() {
  const pad = byId("pad"), shaped = ["left", "right"].every((name) => about.controls.includes(name));
  pad.className = shaped ? "pad" : "pad flow";
  const places = shaped ? { left: "1 / 1", forward: "1 / 2", up: "1 / 2", right: "1 / 3", down: "2 / 2", stay: "2 / 2" } : {};
  if (about.controls.includes("up")) Object.assign(places, { left: "2 / 1", right: "2 / 3", stay: "3 / 2" });
  pad.replaceChildren(...about.controls.map((name, control) => {
    const button = element("button", SYMBOLS[name] || ""), label = element("small", name);
    button.append(label);
    button.dataset.control = control;
    button.setAttribute("aria-label", name);
    if (places[name]) button.style.gridArea = places[name];
    let timer = 0;
    const release = () => clearInterval(timer);
    button.onpointerdown = (event) => {
      if (event.button) return;
      step(control);
      timer = setInterval(() => step(control), 2 * REPEAT);
    };
    button.onpointerup = button.onpointerleave = button.onpointercancel = release;
    button.onclick = (event) => { if (!event.detail) step(control); };  // by keyboard
    return button;
  }));
}

async function step(control) {
  const now = Date.now();
  if (stepping || now - lastStep < REPEAT - 20) return;
  lastStep = now;
  stop();
  clearPlans();
  stepping = true;
  await paced({ type: "step", control });
  stepping = false;
  if (state && !state.ended && !document.body.dataset.failed) say(MODES[state.mode]);
}

// Send a step and note how long it took.
let steps = [], stepping = false;
async function paced(message) {
  const started = performance.now(), done = await send(message);
  steps = [...steps, performance.now() - started].slice(-50);
  const median = [...steps].sort((a, b) => a - b)[steps.length >> 1];
  byId("speed").textContent = `A step takes ${median.toFixed(0)} ms (median of ${steps.length}).`;
  return done;
}

function stop() {
  if (!running) return;
  running.stopped = true;
  running = null;
  byId("guide").setAttribute("aria-pressed", "false");
  byId("agent").setAttribute("aria-pressed", "false");
}

// Run something step by step until it returns false, ends, or another action stops it.
async function run(task, button) {
  stop();
  const mine = running = { stopped: false };
  if (button) button.setAttribute("aria-pressed", "true");
  await task(() => !mine.stopped);
  if (running === mine) stop();
}

byId("guide").onclick = () => {
  if (running && byId("guide").getAttribute("aria-pressed") === "true") return stop();
  clearPlans();
  run(async (goesOn) => {
    say("The guide walks. Press any key or button to take over.");
    while (goesOn() && await paced({ type: "guide" }) && !state.ended) await pause(50);
  }, byId("guide"));
};

async function setMode(mode) {
  stop();
  if (!await send({ type: "mode", mode })) return;
  clearPlans();
  byId("comparison").hidden = true;
  say(MODES[mode]);
}
for (const button of document.querySelectorAll("[data-mode]")) button.onclick = () => setMode(button.dataset.mode);
byId("compare").onclick = () => { stop(); send({ type: "compare" }); };

// ---- memory

byId("fork").onclick = () => send({ type: "fork" });
byId("rewind").oninput = (event) => {
  const back = event.target.max - event.target.value;
  byId("rewind-out").textContent = back ? `-${back}` : "now";
};
byId("rewind").onchange = (event) => { const back = event.target.max - event.target.value; if (back) rewind(back); };
async function rewind(count) {
  stop();
  if (!await send({ type: "rewind", steps: count })) return;
  clearPlans();
  points.splice(Math.max(0, points.length - count - 1));
  drawPlots();
  say(`Back by ${count}: world and memory are as they were.`);
}
const FORGOTTEN = {
  erase: "Memory is empty. Close the eyes, or imagine: nothing is there any more.",
  swap: "This is the memory of a walk through another episode. Look at its map, then imagine.",
  window: "Only the last frames are remembered.",
};
for (const how of ["erase", "swap", "window"]) byId(how).onclick = async () => {
  stop();
  clearPlans();
  if (await send({ type: "forget", how })) say(FORGOTTEN[how]);
};
byId("save").onclick = () => send({ type: "save" });
function download(data) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([data]));
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say(`Saved ${file} (${(data.byteLength / 1000).toFixed(0)} kB).`);
}
byId("load").onchange = async (event) => {
  const [chosenFile] = event.target.files;
  event.target.value = "";
  if (!chosenFile) return;
  if (chosenFile.size > 16 * 2 ** 20) return say("This file is too large for a memory.", true);
  stop();
  clearPlans();
  if (await send(await chosenFile.arrayBuffer())) say(`Memory of ${chosenFile.name}. The real world did not change.`);
};
byId("load").parentElement.onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") byId("load").click(); };

// ---- plans

const sliders = ["candidates", "iterations", "horizon"];
const value = (id) => id === "candidates" ? 2 ** byId(id).value : Number(byId(id).value);
function showSliders() { for (const id of sliders) byId(id).nextElementSibling.textContent = value(id); }
for (const id of sliders) byId(id).oninput = showSliders;
function setBudget(budget) {
  byId("planner").value = budget.planner;
  byId("candidates").value = Math.round(Math.log2(budget.candidates));
  byId("iterations").value = budget.iterations;
  byId("horizon").value = budget.horizon;
  showSliders();
}

function clearPlans() {
  if (!plans.length) return;
  plans = [];
  byId("plans").replaceChildren();
  byId("go").disabled = true;
}

async function makePlan() {
  say("Planning ...");
  const message = { type: "plan", planner: byId("planner").value };
  for (const id of sliders) message[id] = value(id);
  const done = await send(message);
  if (done) { lastMap = 0; await send({ type: "map" }); }
  return done;
}

function showPlans(reply) {
  plans = reply.plans;
  chosen = 0;
  byId("go").disabled = false;
  byId("plans").replaceChildren(...plans.map((plan, index) => {
    const card = element("button", "", "plan-card"), canvas = element("canvas");
    card.style.setProperty("--plan", PLAN_COLOURS[index]);
    card.setAttribute("aria-pressed", index === 0);
    card.append(canvas, `${index ? "other" : "best"}: ${plan.steps} steps`, element("br"), `score ${plan.score.toFixed(2)}`);
    card.title = `Expected reward ${plan.reward.toFixed(2)}`;
    card.onclick = () => {
      chosen = index;
      for (const [i, other] of [...byId("plans").children].entries()) other.firstChild.setAttribute("aria-pressed", i === index);
      if (map) drawMap();
    };
    plan.image = new Image();
    plan.image.src = plan.clip.image;
    plan.canvas = canvas;
    const item = element("div");
    item.setAttribute("role", "listitem");
    item.append(card);
    return item;
  }));
  byId("plan-note").textContent = `Planned in ${reply.seconds.toFixed(1)} s. The clips show what the model expects; the colours are those of the routes on the map.`;
  say("Follow the plan, or choose another one.");
}

setInterval(() => {
  clips += 1;
  for (const plan of plans) {
    const { count, width, height } = plan.clip, at = Math.min(count - 1, clips % (count + 4));
    if (!plan.image.complete) continue;
    plan.canvas.width = width; plan.canvas.height = height;
    plan.canvas.getContext("2d").drawImage(plan.image, at * width, 0, width, height, 0, 0, width, height);
  }
}, 160);

async function followSteps(index, count, goesOn) {
  for (let i = 0; goesOn() && i < count; i++) {
    if (!await paced({ type: "follow", plan: index })) return false;
    if (state.ended) return false;
    if (state.arrived) return "arrived";
    await pause(90);
  }
  return true;
}

function follow(index) {
  return run(async (goesOn) => {
    say("Following the plan ...");
    const result = await followSteps(index, 1000, goesOn);
    if (result === "arrived") say("The plan ends here.");
  });
}
byId("plan").onclick = () => { stop(); makePlan(); };
byId("go").onclick = () => follow(chosen);
byId("agent").onclick = () => {
  if (running && byId("agent").getAttribute("aria-pressed") === "true") return stop();
  run(async (goesOn) => {
    while (goesOn() && await makePlan() && goesOn()) {
      say("The agent acts and replans. Press any key or button to take over.");
      const result = await followSteps(0, about.replan, goesOn);
      if (!result || (result === "arrived" && byId("goal").value !== "task")) break;
    }
  }, byId("agent"));
};

byId("goal").onchange = async (event) => {
  const goal = event.target.value;
  stop();
  clearPlans();
  if (goal === "place") return say("Click a place on the map in memory.");
  cross = null;
  await send({ type: "goal", goal });
};
function showGoal(reply) {
  byId("goal").value = reply.goal;
  const image = reply.image || (reply.goal === "task" && about.goal_image);
  byId("goal-pictures").hidden = !image;
  if (image) paint(byId("goal-image"), image);
  byId("goal-note").textContent = reply.image ? "goal: a frame like this" : "goal image of the task";
}

async function ask(object, name) {
  stop();
  clearPlans();
  if (await send({ type: "ask", object })) say(`The border now asks for the ${name} ball. Plan, and follow the plan.`);
}
async function move(object, name) {
  stop();
  if (await send({ type: "move", object })) { lastMap = 0; scheduleMap(0); say(`The ${name} ball was moved. Memory does not know it yet.`); }
}

// ---- show me

byId("demo").onclick = () => run(async (goesOn) => {
  const left = about.controls.indexOf("left"), turns = 4;
  const tell = async (text, wait) => { say(text); await pause(wait); };
  if (state.mode !== "open") await send({ type: "mode", mode: "open" });
  say("1. Eyes open: a guide walks, and memory sees every frame.");
  for (let i = 0; goesOn() && !state.ended && i < 160; i++) {
    if (i >= 50 && state.age === 0) break;
    if (!await paced({ type: "guide" })) return;
    await pause(40);
  }
  if (!goesOn() || !await send({ type: "mode", mode: "imagine" })) return;
  await tell("2. A ball is in view. From here on everything is imagined.", 1800);
  const turn = async (text) => {
    for (let i = 0; goesOn() && i < turns; i++) {
      await paced({ type: "step", control: left });
      await tell(`${text} (${i + 1} of ${turns})`, 1100);
    }
  };
  await turn("3. Turning once around, in imagination only");
  if (!goesOn()) return;
  await send({ type: "compare" });
  await tell("The model still knows what is there. Below: the same turns in the real world.", 3500);
  if (!goesOn() || !await send({ type: "forget", how: "erase" })) return;
  await tell("4. Now memory is erased. The same turns again:", 1800);
  await turn("5. Without memory there is nothing to come back to");
  if (goesOn()) say("Your turn. Rewind brings the memory back; Eyes open returns to the real world.");
});
byId("hide-intro").onclick = () => { byId("intro").hidden = true; };

// ---- keys and start

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !about) return;
  const target = event.target, typing = target.matches("select, input[type=range], input[type=text]");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Escape") { stop(); return say("Stopped."); }
  if (typing) return;
  const wanted = KEYS[key];
  if (wanted) {
    if (key === " " && target.matches("button, summary, .button, input, [tabindex]")) return;
    const control = about.controls.findIndex((name) => (NAMES[wanted] || [wanted]).includes(name));
    if (control < 0) return;
    event.preventDefault();
    return step(control);
  }
  if (event.repeat) return;
  if ("123".includes(key)) return setMode(["open", "closed", "imagine"][Number(key) - 1]);
  const button = { f: "fork", e: "erase", p: "plan", g: "go", c: "compare" }[key];
  if (button && !byId(button).disabled) byId(button).click();
  if (key === "r") rewind(1);
});
byId("restart").onclick = () => start();
byId("model").onchange = () => start();
byId("unlimited").onchange = () => start();
function start() {
  stop();
  cross = null;
  return send({ type: "start", model: byId("model").value, unlimited: byId("unlimited").checked });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
addEventListener("resize", drawPlots);
connect();
