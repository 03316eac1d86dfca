// The page: brings microphone, pictures, socket, loudspeaker and what is seen together.

import { SpokenClock } from "./clock.js";
import { Dialogue } from "./dialogue.js";
import * as face from "./face.js";
import { about, Link } from "./link.js";
import { Gate, Microphone } from "./microphone.js";
import { ownName } from "./name.js";
import { Player } from "./player.js";
import { Settings } from "./settings.js";
import { Sights } from "./sights.js";
import { Strip } from "./strip.js";
import { Talk } from "./talk.js";
import * as words from "./words.js";

const CONFIRM_MS = 600; // So long after the gate the server has said whether it was speech.
const TAP_MS = 300; // A shorter press of "hold to talk" locks it.
const WAITING = 250; // What is said while the connection is made is sent when it is there: at most 5 s.
const TOLD = ["mode", "threshold", "silence", "voice", "language", "instructions", "record"];

const $ = (id) => document.getElementById(id);

const settings = new Settings($("settings"), changed);
const strip = new Strip($("strip"), $("meter"));
const talk = new Talk($("talk"), $("spoken"), () => ($("welcome").hidden = !talk.empty));
const clock = new SpokenClock();
const gate = new Gate();
const player = new Player({
  began: (id, when) => dialogue.began(id, when),
  position: (id, ms, over) => dialogue.position(id, ms, over),
  level: (level) => strip.theirs(level),
});
const microphone = new Microphone({ frame, lost: lostMicrophone });
const link = new Link(
  { uid: await ownName(), token: () => settings.token, hello: () => settings.message("subscribe", microphone.rate) },
  { record: (message, pcm) => dialogue.take(message, pcm), open: opened, lost },
);
const dialogue = new Dialogue(
  { talk, player, clock, send: (message) => link.send(message) },
  { became: become, trouble: notice, began, probability: (p) => strip.probability(p) },
);
const sights = new Sights({ settings, link, turn: () => dialogue.user, notice });

const state = {
  now: "idle",
  pressed: false, // push to talk is held,
  locked: false, // or was tapped
  troubled: false, // the notice is about the connection
  waiting: [], // messages and sound for a socket that is not open yet: [message, when it was spoken]
};

// --- what the person does ---------------------------------------------------------------------------

$("start").onclick = () => (microphone.live ? end() : start());
$("end").onclick = end;
$("mute").onclick = () => mute(!microphone.muted);
$("open-settings").onclick = openSettings;
$("notice-close").onclick = face.noNotice;
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
hold.onclick = ({ pointerType }) => !pointerType && (state.pressed ? letGo(true) : press(true)); // assistive technology
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open) dialogue.stop();
  if (event.code === "Space" && pushable(event) && !event.repeat) press();
});
addEventListener("keyup", (event) => event.code === "Space" && pushable(event) && letGo());
document.addEventListener("visibilitychange", stayAwake);
addEventListener("blur", () => letGo(true)); // Whoever looks elsewhere lets go of keys unseen.

/** Whether a space bar is for talking: not where it types or presses something else. */
function pushable(event) {
  if (!settings.push || !microphone.live || $("settings").open) return false;
  const free = event.target === hold || !event.target.closest?.("input, textarea, select, button, a");
  if (free) event.preventDefault();
  return free;
}

async function start() {
  if (!isSecureContext || !navigator.mediaDevices) return notice(words.insecure());
  if (!window.AudioWorkletNode) return notice(words.UNABLE);
  face.noNotice();
  become("connecting");
  try {
    await Promise.all([player.start(), listen()]);
  } catch (error) {
    become("idle");
    return notice(words.deviceTrouble(error, "microphone"), start);
  }
  strip.start();
  if (link.ready) configure();
  else link.open();
  become(link.ready ? "listening" : "connecting");
  stayAwake();
  await sights.turnOn(true);
  pace();
  $("flip").hidden = (await settings.devices()) < 2;
}

/** While the page is seen; a phone that saves its battery may refuse. */
function stayAwake() {
  if (microphone.live && !document.hidden) navigator.wakeLock?.request("screen").catch(() => {});
}

function listen() {
  return microphone.start({ deviceId: settings.get("microphone"), echoCancellation: settings.get("echo") });
}

function end() {
  microphone.stop();
  sights.turnOn(false);
  dialogue.stop();
  dialogue.lost();
  link.close();
  strip.stop();
  Object.assign(state, { pressed: false, locked: false, waiting: [] });
  mute(false);
  face.noNotice();
  become("idle");
}

function mute(muted) {
  microphone.muted = muted;
  $("mute").setAttribute("aria-pressed", muted);
  $("mute").querySelector("use").setAttribute("href", muted ? "#i-mute" : "#i-mic");
  if (["listening", "muted"].includes(state.now)) become("listening");
}

/** Push to talk: held, or locked by a tap. */
function press(locked = false) {
  if (state.pressed) return;
  dialogue.stop();
  Object.assign(state, { pressed: true, locked, pressedAt: performance.now() });
  dialogue.begin();
}

function letGo(force = false) {
  if (!state.pressed) return;
  if (state.locked && !force) state.locked = false;
  else if (!force && performance.now() - state.pressedAt < TAP_MS) {
    state.locked = true;
    return become("hearing");
  }
  state.pressed = state.locked = false;
  tell({ type: "commit" });
  dialogue.finish();
}

function type(text) {
  if (!text) return;
  if (window.AudioWorkletNode) player.start();
  dialogue.typed(text);
  tell({ messages: [{ role: "user", content: [{ type: "text", text }] }] });
  link.open();
}

function reset() {
  dialogue.stop();
  dialogue.forget();
  sights.forget();
  link.send({ type: "reset" });
  $("settings").close();
}

async function openSettings() {
  $("settings").showModal();
  await settings.devices();
}

async function changed(name) {
  if (name === "token") {
    await introduce();
    if (microphone.live || state.waiting.length) link.open();
  } else if (["microphone", "echo"].includes(name) && microphone.live) {
    await listen().catch((error) => notice(words.deviceTrouble(error, "microphone"), start));
    configure();
  } else if (name === "camera" && sights.camera.live) await sights.look("camera");
  if (TOLD.includes(name)) configure();
  if (name === "mode") become(microphone.live ? "listening" : "idle");
  pace();
}

function configure() {
  clock.restart(false);
  link.send(settings.message("configure", microphone.rate));
}

// --- sound and pictures on their way out ------------------------------------------------------------

function frame(pcm, level) {
  if (microphone.muted) {
    new Int16Array(pcm).fill(0); // Silence, so that the server sees the end of what was said before.
    level = 0;
  }
  strip.mine(level);
  link.watch();
  if (settings.push) {
    if (state.pressed) tell(pcm);
    return strip.probability(state.pressed ? 1 : 0);
  }
  tell(pcm, performance.now());
  if (!player.playing) gate.quiet();
  else if (gate.opens(level)) bargeIn();
}

/** Send it, in order, now or when the connection is there. `when`: sound of the open microphone was spoken then. */
function tell(message, when) {
  if (!state.waiting.length && link.send(message)) {
    if (when) clock.sent(when);
    return;
  }
  state.waiting.push([message, when]);
  if (state.waiting.length > WAITING) state.waiting.splice(state.waiting.findIndex(([waits]) => waits instanceof ArrayBuffer), 1);
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

/** The person's turn began. */
function began(turn) {
  clearTimeout(state.confirm);
  sights.began(turn, settings.push);
}

/** Pictures come faster while the person speaks. */
function pace() {
  const busy = settings.push ? state.pressed : state.now === "hearing";
  sights.pace(link.ready && (busy || !settings.push) ? settings.number(busy ? "busyRate" : "idleRate") : 0);
}

// --- the connection ---------------------------------------------------------------------------------

function opened() {
  clock.restart(false);
  sights.forget();
  if (state.troubled) face.noNotice();
  // What the server has to tell about the session comes first.
  setTimeout(() => {
    for (const [message, when] of state.waiting.splice(0)) tell(message, when);
  }, 0);
  if (state.pressed) become("hearing");
  else become(state.waiting.some(([message]) => !(message instanceof ArrayBuffer)) ? "thinking" : "listening");
}

function lost(why) {
  dialogue.lost();
  if (why.kind !== "lost") state.waiting = state.waiting.filter(([message]) => !(message instanceof ArrayBuffer));
  become(why.kind);
  notice(words.linkTrouble(why));
}

// --- what is seen -----------------------------------------------------------------------------------

/** `resting`: nobody speaks, nothing is being answered. */
function become(now) {
  if (now === "resting" && !["thinking", "speaking", "hearing"].includes(state.now)) return;
  if (["resting", "listening"].includes(now)) now = atRest();
  state.now = now;
  face.show(now, { live: microphone.live, push: settings.push, pressed: state.pressed, locked: state.locked });
  pace();
}

function atRest() {
  if (!microphone.live) return link.ready ? "waiting" : "idle";
  if (!link.ready) return "connecting";
  if (settings.push) return "waiting";
  return microphone.muted ? "muted" : "listening";
}

function notice(trouble, retry) {
  state.troubled = ["lost", "full", "token"].includes(state.now);
  face.notice(trouble, () => {
    if (trouble.action === "token") settings.askToken();
    else if (trouble.action === "settings") openSettings();
    else retry?.();
  });
}

function lostMicrophone() {
  notice(words.gone("microphone"), start);
  microphone.stop();
  become("listening");
}

async function introduce() {
  try {
    const { status, body } = await about(settings.token);
    if (status === 401) {
      $("token-row").hidden = false;
      if (state.now === "idle") become("token");
      return notice(words.linkTrouble({ kind: "token" }));
    }
    if (state.now === "token") {
      face.noNotice();
      become("listening");
    }
    const recorded = body.recording ? " It is recorded there only if you say so in the settings." : "";
    $("model").textContent = body.model ?? "";
    $("where").textContent = `This page sends what you say and show to ${location.host} only.${recorded}`;
    settings.offer(body);
  } catch {
    notice(words.linkTrouble({ kind: "lost" }));
  }
}

navigator.mediaDevices?.addEventListener?.("devicechange", () => settings.devices());
become("idle");
if (!isSecureContext) notice(words.insecure());
introduce();
