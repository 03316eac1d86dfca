// The page: brings microphone, pictures, socket, loudspeaker and what is seen together.

import { pictureMessage, Sight } from "./camera.js";
import { SpokenClock } from "./clock.js";
import { Dialogue } from "./dialogue.js";
import * as face from "./face.js";
import { about, Link } from "./link.js";
import { Gate, Microphone } from "./microphone.js";
import { ownName } from "./name.js";
import { Player } from "./player.js";
import { kept, keep, Settings } from "./settings.js";
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
const microphone = new Microphone({ frame, lost: () => lostDevice("microphone") });
const sights = {
  camera: new Sight($("camera-video"), { picture: (...p) => picture("camera", ...p), lost: () => lostDevice("camera") }),
  screen: new Sight($("screen-video"), { picture: (...p) => picture("screen", ...p), lost: () => hide("screen") }),
};
const link = new Link(
  { uid: await ownName(), token: () => settings.token, hello: () => settings.message("subscribe", microphone.rate) },
  { record: (message, pcm) => dialogue.take(message, pcm), open: opened, lost },
);
const dialogue = new Dialogue(
  { talk, player, clock, send: (message) => link.send(message) },
  { became: become, trouble: notice, began: userBegan, probability: (p) => strip.probability(p) },
);

const state = {
  now: "idle",
  cameraWanted: kept("camera") !== "off",
  facing: "user",
  pressed: false, // push to talk is held,
  locked: false, // or was tapped
  troubled: false, // the notice is about the connection
  glimpse: null, // the last picture that was sent between turns: the server adds it to the next one
  waiting: [], // messages and sound for a socket that is not open yet: [message, when it was spoken]
};

// --- what the person does ---------------------------------------------------------------------------

$("start").onclick = () => (microphone.live ? end() : start());
$("end").onclick = end;
$("camera").onclick = () => wantCamera(!state.cameraWanted);
$("screen").onclick = () => (sights.screen.live ? hide("screen") : look("screen"));
$("flip").onclick = flip;
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
  navigator.wakeLock?.request("screen").catch(() => {}); // A phone that saves its battery may refuse.
  if (state.cameraWanted) await look("camera");
  $("flip").hidden = (await settings.devices()) < 2;
}

function listen() {
  return microphone.start({ deviceId: settings.get("microphone"), echoCancellation: settings.get("echo") });
}

function end() {
  microphone.stop();
  hide("camera");
  hide("screen");
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

function wantCamera(wanted) {
  state.cameraWanted = wanted;
  keep("camera", wanted ? "on" : "off");
  $("camera").setAttribute("aria-pressed", wanted);
  if (!wanted) hide("camera");
  else if (microphone.live) look("camera");
}

/** Show the model what `name`, the camera or the screen, sees. */
async function look(name) {
  if (!navigator.mediaDevices) return notice(words.insecure());
  const sight = sights[name];
  try {
    if (name === "screen") await sight.screen();
    else await sight.camera({ deviceId: settings.get("camera"), facingMode: state.facing });
  } catch (error) {
    hide(name);
    if (name === "camera") $("camera").setAttribute("aria-pressed", false);
    const trouble = words.deviceTrouble(error, name);
    return trouble && notice(trouble, () => wantCamera(true));
  }
  $(`${name}-sight`).hidden = false;
  $(`${name}-sight`).classList.toggle("mirrored", name === "camera" && sight.facing !== "environment");
  $(name).setAttribute("aria-pressed", true);
  pace();
}

function hide(name) {
  sights[name].stop();
  $(`${name}-sight`).hidden = true;
  if (name === "screen") $("screen").setAttribute("aria-pressed", false);
}

function flip() {
  state.facing = state.facing === "user" ? "environment" : "user";
  settings.form.elements.camera.value = "";
  if (sights.camera.live) look("camera");
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
  for (const sight of Object.values(sights)) sight.forget();
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
  } else if (name === "camera" && sights.camera.live) await look("camera");
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

async function picture(source, blob, size) {
  const turn = dialogue.user;
  const message = link.ready && !link.clogged && (await pictureMessage(blob));
  if (!message || !link.send(message)) return sights[source].forget();
  $(`${source}-caption`).textContent = `Sent ${new Date().toLocaleTimeString()}, ${Math.round(blob.size / 1024)} kB`;
  $(`${source}-sight`).getAnimations?.({ subtree: true }).forEach((animation) => animation.cancel());
  $(`${source}-sight`).classList.remove("sent");
  requestAnimationFrame(() => $(`${source}-sight`).classList.add("sent"));
  if (turn && dialogue.user === turn) turn.picture(blob, size, source);
  else state.glimpse = [blob, size, source];
}

function userBegan(turn) {
  clearTimeout(state.confirm);
  if (state.glimpse) turn.picture(...state.glimpse);
  state.glimpse = null;
  const live = Object.values(sights).filter((sight) => sight.live);
  // Of two sources one is missing, then.
  if (live.length > 1) for (const sight of live) sight.forget();
  if (settings.push) for (const sight of live) sight.look();
}

/** Pictures come faster while the person speaks. */
function pace() {
  const busy = settings.push ? state.pressed : state.now === "hearing";
  const rate = link.ready && (busy || !settings.push) ? settings.number(busy ? "busyRate" : "idleRate") : 0;
  for (const sight of Object.values(sights)) {
    sight.width = settings.number("width");
    sight.pace(rate);
  }
}

// --- the connection ---------------------------------------------------------------------------------

function opened() {
  clock.restart(false);
  for (const sight of Object.values(sights)) sight.forget();
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

function lostDevice(kind) {
  notice(words.gone(kind), kind === "camera" ? () => wantCamera(true) : start);
  if (kind === "camera") return hide("camera");
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
    const recorded = body.recording ? ", where it may be recorded" : "";
    $("model").textContent = body.model ?? "";
    $("where").textContent = `This page sends what you say and show to ${location.host} only${recorded}.`;
    settings.offer(body);
  } catch {
    notice(words.linkTrouble({ kind: "lost" }));
  }
}

$("camera").setAttribute("aria-pressed", state.cameraWanted);
$("screen").hidden = !navigator.mediaDevices?.getDisplayMedia; // Phones cannot.
navigator.mediaDevices?.addEventListener?.("devicechange", () => settings.devices());
become("idle");
if (!isSecureContext) notice(words.insecure());
introduce();
