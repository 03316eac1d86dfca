// The page: brings microphone, pictures, socket, loudspeaker and what is seen together.

import { pictureMessage, Sight } from "./camera.js";
import { about, Link } from "./link.js";
import { HEARD_HZ, Gate, Microphone } from "./microphone.js";
import { Player } from "./player.js";
import { Settings } from "./settings.js";
import { Strip } from "./strip.js";
import { Talk } from "./talk.js";
import * as words from "./words.js";

const PLAYED_EVERY_MS = 100;
const CONFIRM_MS = 600; // The server says so long after the gate whether it was speech.
const TAP_MS = 300; // A shorter press of "hold to talk" locks it.
const FRAME_MS = 20;
const REMEMBERED_FRAMES = 3000;
const RESTORED_TURNS = 20;

const $ = (id) => document.getElementById(id);

const settings = new Settings($("settings"), changed);
const strip = new Strip($("strip"), $("meter"));
const talk = new Talk($("talk"), $("spoken"));
const gate = new Gate();
const player = new Player({ began, position, level: (level) => strip.theirs(level) });
const microphone = new Microphone({ frame, lost: () => lostDevice("microphone") });
const sights = {
  camera: new Sight($("camera-video"), { picture: (...p) => picture("camera", ...p), lost: () => lostDevice("camera") }),
  screen: new Sight($("screen-video"), { picture: (...p) => picture("screen", ...p), lost: () => show("screen", false) }),
};
const link = new Link({ uid: await ownName(), token: () => settings.token, hello }, { record, open: opened, lost });

const state = {
  now: "idle",
  cameraWanted: stored("camera") !== "off",
  facing: "user",
  pressed: false,
  locked: false,
  session: null,
  user: null, // the turn that the person is in
  answer: null, // the one that is being made or played
  endedAt: null, // when the person finished, on this page's clock
  glimpses: [], // pictures that were sent and belong to the next turn
  waiting: [], // messages for a socket that is not open yet
  playedAt: 0,
};

// --- what the person does ---------------------------------------------------------------------------

$("start").onclick = () => (microphone.live ? end() : start());
$("end").onclick = end;
$("camera").onclick = () => show("camera", !state.cameraWanted);
$("screen").onclick = () => show("screen", !sights.screen.live);
$("flip").onclick = flip;
$("mute").onclick = () => mute(!microphone.muted);
$("open-settings").onclick = openSettings;
$("notice-close").onclick = () => notice(null);
$("reset").onclick = reset;
$("form").onsubmit = (event) => {
  event.preventDefault();
  type($("line").value.trim());
  $("line").value = "";
};

const hold = $("hold");
hold.onpointerdown = (event) => {
  hold.setPointerCapture(event.pointerId);
  press();
};
hold.onpointerup = hold.onpointercancel = () => letGo();
hold.onclick = (event) => event.detail === 0 && !event.pointerType && (state.pressed ? letGo(true) : press(true));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open) stopAnswer();
  if (event.code === "Space" && pushable(event) && !event.repeat) press();
});
addEventListener("keyup", (event) => event.code === "Space" && pushable(event) && letGo());

/** Whether a space bar is for talking: not where it types or presses something else. */
function pushable(event) {
  if (!settings.push || !microphone.live || $("settings").open) return false;
  const mine = event.target === hold || !event.target.closest?.("input, textarea, select, button, a");
  if (mine) event.preventDefault();
  return mine;
}

async function start() {
  if (!isSecureContext || !navigator.mediaDevices) return notice(words.insecure());
  if (!window.AudioWorkletNode) return notice(words.UNABLE);
  notice(null);
  become("connecting");
  try {
    await Promise.all([player.start(), listen()]);
  } catch (error) {
    become("idle");
    return notice(words.deviceTrouble(error, "microphone"), start);
  }
  strip.start();
  link.ready ? configure() : link.open();
  become(link.ready ? "listening" : "connecting");
  stayAwake();
  if (state.cameraWanted) await show("camera", true);
  settings.devices().then((cameras) => ($("flip").hidden = cameras < 2));
}

async function listen() {
  await microphone.start({ deviceId: settings.get("microphone"), echoCancellation: settings.get("echo") });
}

function end() {
  microphone.stop();
  for (const sight of ["camera", "screen"]) hide(sight);
  stopAnswer();
  link.close();
  player.clear();
  strip.stop();
  state.user = null;
  state.pressed = state.locked = false;
  mute(false);
  notice(null);
  become("idle");
}

function mute(muted) {
  microphone.muted = muted;
  $("mute").setAttribute("aria-pressed", muted);
  if (state.now === "listening" || state.now === "muted") become("listening");
}

async function show(name, wanted) {
  if (name === "camera") {
    state.cameraWanted = wanted;
    store("camera", wanted ? "on" : "off");
    $("camera").setAttribute("aria-pressed", wanted);
    if (wanted && !microphone.live) return;
  }
  if (!wanted) return hide(name);
  if (!navigator.mediaDevices) return notice(words.insecure());
  const sight = sights[name];
  try {
    if (name === "screen") await sight.screen();
    else await sight.camera({ deviceId: settings.get("camera"), facingMode: state.facing });
  } catch (error) {
    hide(name);
    const trouble = words.deviceTrouble(error, name);
    if (trouble) notice(trouble, () => show(name, true));
    if (name === "camera") $("camera").setAttribute("aria-pressed", false);
    return;
  }
  $(`${name}-sight`).hidden = false;
  $(`${name}-sight`).classList.toggle("mirrored", name === "camera" && sight.facing !== "environment");
  if (name === "screen") $("screen").setAttribute("aria-pressed", true);
  pace();
}

function hide(name) {
  sights[name].stop();
  $(`${name}-sight`).hidden = true;
  if (name === "screen") $("screen").setAttribute("aria-pressed", false);
}

async function flip() {
  state.facing = state.facing === "user" ? "environment" : "user";
  settings.form.elements.camera.value = "";
  if (sights.camera.live) await show("camera", true);
}

/** Push to talk: held, or locked by a short press. */
function press(locked = false) {
  if (state.pressed) return;
  stopAnswer();
  Object.assign(state, { pressed: true, locked, pressedAt: performance.now(), user: talk.user(null), pushed: true });
  adoptGlimpses();
  for (const sight of Object.values(sights)) sight.look();
  become("hearing");
}

function letGo(force = false) {
  if (!state.pressed) return;
  if (!force && state.locked) state.locked = false;
  else if (!force && performance.now() - state.pressedAt < TAP_MS) {
    state.locked = true;
    return;
  }
  state.pressed = state.locked = false;
  state.endedAt = performance.now();
  link.send({ type: "commit" });
  become("thinking");
}

function stopAnswer() {
  if (!state.answer) return;
  link.send({ type: "stop" });
  silence();
}

async function type(text) {
  if (!text) return;
  welcomed();
  if (window.AudioWorkletNode) player.start();
  silence();
  state.endedAt = performance.now();
  const turn = talk.user(null);
  turn.write(text, true);
  state.user = null;
  adoptGlimpses(turn);
  tell({ messages: [{ role: "user", content: [{ type: "text", text }] }] });
  become("thinking");
}

function reset() {
  stopAnswer();
  talk.clear();
  state.user = state.answer = null;
  for (const sight of Object.values(sights)) sight.forget();
  link.send({ type: "reset" });
  $("settings").close();
  $("welcome").hidden = false;
}

async function openSettings() {
  $("settings").showModal();
  await settings.devices();
}

async function changed(name) {
  if (name === "token") {
    await introduce();
    if (microphone.live) link.open();
  } else if ((name === "microphone" || name === "echo") && microphone.live) {
    try {
      await listen();
    } catch (error) {
      notice(words.deviceTrouble(error, "microphone"), start);
    }
    configure();
  } else if (name === "camera" && sights.camera.live) await show("camera", true);
  else if (name === "mode") become(microphone.live ? "listening" : "idle");
  if (["mode", "threshold", "silence", "voice", "language", "instructions", "record"].includes(name)) configure();
  pace();
}

function configure() {
  state.calibrate = true;
  link.send(settings.message("configure", microphone.rate));
}

// --- sound and pictures on their way out ------------------------------------------------------------

const clock = { ms: 0, base: 0, marks: [] };

/** When the sample at `audioMs` of the server's stream was spoken, on this page's clock. */
function spokenAt(audioMs) {
  const at = audioMs - clock.base;
  const mark = clock.marks.find(([ms]) => ms >= at) ?? clock.marks.at(-1);
  return mark ? mark[1] - Math.max(0, mark[0] - at) : performance.now();
}

function frame(pcm, level) {
  if (microphone.muted) {
    new Int16Array(pcm).fill(0);
    level = 0;
  }
  strip.mine(level);
  link.watch();
  if (settings.push) {
    if (state.pressed) link.send(pcm);
    if (settings.push) strip.probability(state.pressed ? 1 : 0);
    return;
  }
  if (link.send(pcm)) {
    clock.ms += FRAME_MS;
    clock.marks.push([clock.ms, performance.now()]);
    if (clock.marks.length > REMEMBERED_FRAMES) clock.marks.splice(0, REMEMBERED_FRAMES / 2);
  }
  if (!player.playing) gate.quiet();
  else if (gate.opens(level)) bargeIn();
}

/** Somebody seems to talk over the answer: silent at once, and for good when the server heard it too. */
function bargeIn() {
  player.hold();
  clearTimeout(state.confirm);
  state.confirm = setTimeout(() => {
    gate.mistaken();
    player.release();
  }, CONFIRM_MS);
}

async function picture(source, blob, size) {
  if (!link.ready || link.clogged) return sights[source].forget();
  const turn = state.user;
  const message = await pictureMessage(blob);
  if (!link.send(message)) return sights[source].forget();
  $(`${source}-caption`).textContent = `Sent ${new Date().toLocaleTimeString()}, ${Math.round(blob.size / 1024)} kB`;
  const sight = $(`${source}-sight`);
  sight.classList.remove("sent");
  requestAnimationFrame(() => sight.classList.add("sent"));
  if (turn && state.user === turn) turn.picture(blob, size, source);
  else state.glimpses = [...state.glimpses.filter((g) => g[2] !== source), [blob, size, source]];
}

function adoptGlimpses(turn = state.user) {
  for (const glimpse of state.glimpses) turn.picture(...glimpse);
  state.glimpses = [];
}

/** Pictures come faster while the person speaks. */
function pace() {
  const busy = settings.push ? state.pressed : state.now === "hearing";
  const rate = settings.number(busy ? "busyRate" : "idleRate");
  for (const sight of Object.values(sights)) {
    sight.width = settings.number("width");
    sight.pace(link.ready && (busy || !settings.push) ? rate : 0);
  }
}

// --- what the server says ---------------------------------------------------------------------------

function hello() {
  return settings.message("subscribe", microphone.rate);
}

function tell(message) {
  if (link.send(message)) return;
  state.waiting.push(message);
  link.open();
}

function opened() {
  Object.assign(clock, { ms: 0, marks: [] });
  state.calibrate = true;
  for (const sight of Object.values(sights)) sight.forget();
  if (state.troubled) notice(null);
  // What the server tells about its session comes first.
  setTimeout(() => {
    for (const message of state.waiting.splice(0)) link.send(message);
  }, 0);
  become(microphone.live ? "listening" : state.now === "thinking" ? "thinking" : "waiting");
}

function lost(why) {
  silence();
  state.user = null;
  state.pressed = state.locked = false;
  state.troubled = true;
  become(why.kind);
  notice(words.linkTrouble(why));
}

/** A new session knows nothing of what was said; this page does. */
function newSession(id) {
  const before = state.session;
  state.session = id;
  clock.base = 0;
  state.calibrate = false;
  const items = talk.history().slice(-RESTORED_TURNS);
  if (!before || !items.length) return;
  link.send({ type: "restore", items });
  talk.note("Connected anew; the server was told what was said before.");
}

function record(message, pcm) {
  if (message.error) return failed(message);
  if (message.type) return note(message);
  if (!Array.isArray(message.choices)) return;
  const [{ text, finish_reason: reason }] = message.choices;
  if (text === "assistant:\n") return answerBegins();
  const answer = state.making;
  if (!answer) return;
  if (reason !== "processing") return answerEnds(answer, reason);
  if (message.item_id) answer.id = message.item_id;
  if (text) {
    answer.write(text);
    welcomed();
  }
  if (!pcm) return;
  answer.speech(message.words ?? []);
  if (player.node) player.play(message.item_id, pcm);
  else answer.spoke = false;
}

function note(message) {
  switch (message.type) {
    case "opened":
      return newSession(message.session_id);
    case "level":
      if (state.calibrate) clock.base = message.audio_ms - clock.ms;
      state.calibrate = false;
      return strip.probability(message.probability);
    case "speech_started":
      return speechStarted(message.item_id);
    case "speech_stopped":
      state.endedAt = spokenAt(message.audio_ms);
      return become("thinking");
    case "transcript":
      return transcript(message);
    case "not_understood":
      return talk.find(message.item_id)?.wrong(message.message);
    case "truncated":
      return talk.find(message.item_id)?.truncated(message.text);
    case "removed":
      return talk.turns.filter((turn) => turn.id === message.item_id).forEach((turn) => talk.remove(turn));
    case "waterfall":
      return (state.answer ?? state.made)?.stages(message.waterfall_ms);
  }
}

function speechStarted(id) {
  clearTimeout(state.confirm);
  silence();
  welcomed();
  state.user = talk.user(id);
  adoptGlimpses();
  if (sights.camera.live && sights.screen.live) for (const sight of Object.values(sights)) sight.forget();
  become("hearing");
}

function transcript({ item_id: id, text, final }) {
  let turn = talk.find(id);
  if (!turn) {
    turn = state.pushed && state.user?.id === null ? state.user : talk.user(id);
    turn.id = id;
  }
  welcomed();
  turn.write(text, final);
}

function answerBegins() {
  state.user = null;
  state.answer = state.making = talk.answer();
  state.answer.endedAt = state.endedAt;
  become("thinking");
}

function answerEnds(answer, reason) {
  state.making = null;
  state.made = answer;
  answer.end(reason);
  if (!answer.text) talk.remove(answer);
  if (reason !== "interrupted" && player.playing) return;
  if (state.answer === answer) state.answer = null;
  rest();
}

function failed({ error }) {
  if (typeof error === "object") {
    if (state.making) answerEnds(state.making, "failed");
    return notice(words.answerTrouble(error));
  }
  if (/buffer too small/.test(error)) return rest();
  notice(words.refused(error));
}

// --- the answer as it is heard ----------------------------------------------------------------------

function began(id, when) {
  const answer = talk.find(id);
  if (!answer) return;
  if (answer.endedAt) answer.stages({ heard: when - answer.endedAt });
  become("speaking");
}

function position(id, ms, over) {
  const answer = talk.find(id);
  answer?.played(ms, over);
  const now = performance.now();
  if (over || now - state.playedAt > PLAYED_EVERY_MS) {
    state.playedAt = now;
    link.send({ type: "played", item_id: id, audio_ms: Math.ceil(ms) });
  }
  if (over && answer === state.answer && answer?.ended) {
    state.answer = null;
    rest();
  }
}

/** The answer is not heard any further. */
function silence() {
  clearTimeout(state.confirm);
  player.clear();
  state.answer?.cut();
  state.answer = null;
}

function rest() {
  if (["thinking", "speaking", "hearing"].includes(state.now) && !state.user) become("listening");
}

// --- what is seen -----------------------------------------------------------------------------------

function become(now) {
  const live = microphone.live;
  if (now === "listening" && !live) now = link.ready ? "waiting" : "idle";
  if (now === "listening" && settings.push) now = "waiting";
  if (now === "listening" && microphone.muted) now = "muted";
  state.now = now;
  document.body.dataset.state = now;
  const said = words.STATUS[now];
  if ($("status").textContent !== said) $("status").textContent = said;
  const push = live && settings.push;
  $("start").hidden = push;
  $("start").classList.toggle("live", live);
  $("start-label").textContent = live ? "End" : "Start talking";
  $("start").querySelector("use").setAttribute("href", live ? "#i-end" : "#i-mic");
  $("start").disabled = now === "connecting" && !live;
  hold.hidden = $("end").hidden = !push;
  hold.classList.toggle("live", state.pressed);
  $("hold-label").textContent = state.pressed ? (state.locked ? "Tap to send" : "Release to send") : "Hold to talk";
  $("mute").disabled = !live || push;
  pace();
}

function welcomed() {
  $("welcome").hidden = true;
}

/** Say what went wrong; null: all is well. */
function notice(trouble, retry) {
  $("notice").hidden = !trouble;
  state.troubled = false;
  if (!trouble) return;
  const link = ["lost", "full", "token"].includes(state.now);
  state.troubled = link;
  $("notice-title").textContent = trouble.title;
  $("notice-text").textContent = trouble.text;
  $("notice-code").textContent = trouble.code ?? "";
  $("notice-code").hidden = !trouble.code;
  const action = $("notice-action");
  action.hidden = !trouble.action;
  action.textContent = words.ACTIONS[trouble.action] ?? "";
  action.onclick = () => {
    notice(null);
    if (trouble.action === "token") settings.askToken();
    else if (trouble.action === "settings") openSettings();
    else retry?.();
  };
}

function lostDevice(kind) {
  notice(words.gone(kind), kind === "camera" ? () => show("camera", true) : start);
  if (kind === "camera") hide("camera");
  else {
    microphone.stop();
    become(link.ready ? "waiting" : "idle");
  }
}

async function stayAwake() {
  try {
    await navigator.wakeLock?.request("screen");
  } catch {
    // A phone that saves its battery may refuse.
  }
}

async function introduce() {
  try {
    const { status, body } = await about(settings.token);
    if (status === 401) {
      document.getElementById("token-row").hidden = false;
      return notice(words.linkTrouble({ kind: "token" }));
    }
    if ($("notice-title").textContent === words.linkTrouble({ kind: "token" }).title) notice(null);
    $("model").textContent = body.model ?? "";
    $("where").textContent = `What you say and show goes to ${location.host} and nowhere else${body.recording ? "; it may be recorded there" : ""}.`;
    settings.offer(body);
  } catch {
    notice(words.linkTrouble({ kind: "lost" }));
  }
}

/** A name for the session that lasts as long as this tab, and is not shared with a copy of it. */
async function ownName() {
  const fresh = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  let name = fresh();
  try {
    name = sessionStorage.getItem("echosight-uid") ?? name;
    const free = await new Promise((done) => {
      if (!navigator.locks) return done(true);
      navigator.locks.request(name, { ifAvailable: true }, (lock) => {
        done(Boolean(lock));
        return lock && new Promise(() => {});
      });
    });
    if (!free) name = fresh();
    sessionStorage.setItem("echosight-uid", name);
  } catch {
    // Storage is switched off: the name lasts as long as the page.
  }
  return name;
}

function stored(name) {
  try {
    return localStorage.getItem(`echosight-${name}`);
  } catch {
    return null;
  }
}

function store(name, value) {
  try {
    localStorage.setItem(`echosight-${name}`, value);
  } catch {
    // It lasts as long as the page.
  }
}

microphone.rate = HEARD_HZ;
$("camera").setAttribute("aria-pressed", state.cameraWanted);
navigator.mediaDevices?.addEventListener?.("devicechange", () => settings.devices());
become("idle");
if (!isSecureContext) notice(words.insecure());
introduce();
