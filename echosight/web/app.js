// The page: connects the microphone, the video sources, the server, the player and the views.

import { Connection, fetchServerInfo } from "./connection.js";
import { ConversationState } from "./conversation_state.js";
import { LevelMeter } from "./level_meter.js";
import * as messages from "./messages.js";
import { BargeInGate, Microphone } from "./microphone.js";
import { Player } from "./player.js";
import { sessionId } from "./session_id.js";
import { Settings } from "./settings.js";
import { hideNotice, showNotice as showNoticeView, showState } from "./status_view.js";
import { StreamClock } from "./stream_clock.js";
import { TranscriptView } from "./transcript_view.js";
import { VideoSources } from "./video_sources.js";

const BARGE_IN_CONFIRM_MS = 600; // The server reports speech within this time after the gate opened, or there was none.
const TAP_MS = 300; // A shorter press of "hold to talk" locks it.
const MAX_QUEUED = 250; // Messages and audio frames kept until the connection is open: 5 s of audio.
const SESSION_SETTINGS = ["mode", "sensitivity", "silence", "voice", "language", "instructions", "record"];

const $ = (id) => document.getElementById(id);

const settings = new Settings($("settings"), onSettingChanged);
const meter = new LevelMeter($("levels"), $("meter"));
const view = new TranscriptView($("transcript"), $("announcements"), () => ($("welcome").hidden = !view.empty));
const clock = new StreamClock();
const gate = new BargeInGate();
const player = new Player({
  started: (itemId, time) => conversation.onPlaybackStarted(itemId, time),
  position: (itemId, ms, drained) => conversation.onPosition(itemId, ms, drained),
  level: (level) => meter.playback(level),
});
const microphone = new Microphone({ frame: onMicrophoneFrame, lost: onMicrophoneLost });
const connection = new Connection(
  { uid: await sessionId(), token: () => settings.token, subscribe: () => settings.message("subscribe", microphone.sampleRate) },
  { record: (record, pcm) => conversation.receive(record, pcm), open: onConnected, lost: onConnectionLost },
);
const conversation = new ConversationState(
  { view, player, clock, send: (message) => connection.send(message) },
  { state: setState, error: showNotice, turnStarted: onTurnStarted, probability: (p) => meter.probability(p) },
);
const video = new VideoSources({ settings, connection, userTurn: () => conversation.userTurn, showNotice });

const page = {
  state: "idle", // a key of messages.STATUS
  pressed: false, // "hold to talk" is active,
  locked: false, // and stays active until the next tap
  connectionNotice: false, // the notice is about the connection
  queue: [], // until the connection is open: [message or ArrayBuffer, when it was recorded]
};

// --- the user's actions -----------------------------------------------------------------------------

$("start").onclick = () => (microphone.live ? end() : start());
$("end").onclick = end;
$("mute").onclick = () => mute(!microphone.muted);
$("open-settings").onclick = openSettings;
$("notice-close").onclick = hideNotice;
$("reset").onclick = reset;
$("composer").onsubmit = (event) => {
  event.preventDefault();
  sendText($("message").value.trim());
  $("message").value = "";
};

const hold = $("hold");
hold.onpointerdown = (event) => {
  hold.setPointerCapture(event.pointerId);
  press();
};
hold.onpointerup = hold.onpointercancel = () => release();
hold.onclick = ({ pointerType }) => !pointerType && (page.pressed ? release(true) : press(true)); // assistive technology
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open) conversation.stopResponse();
  if (event.code === "Space" && isTalkKey(event) && !event.repeat) press();
});
addEventListener("keyup", (event) => event.code === "Space" && isTalkKey(event) && release());
document.addEventListener("visibilitychange", keepScreenOn);
addEventListener("blur", () => release(true)); // A page without focus does not see that the key is released.

/** Whether the space bar means "hold to talk": not while it types text or presses another control. */
function isTalkKey(event) {
  if (!settings.pushToTalk || !microphone.live || $("settings").open) return false;
  const isFree = event.target === hold || !event.target.closest?.("input, textarea, select, button, a");
  if (isFree) event.preventDefault();
  return isFree;
}

async function start() {
  if (!isSecureContext || !navigator.mediaDevices) return showNotice(messages.insecurePage());
  if (!window.AudioWorkletNode) return showNotice(messages.UNSUPPORTED_BROWSER);
  hideNotice();
  setState("connecting");
  try {
    await Promise.all([player.start(), openMicrophone()]);
  } catch (error) {
    setState("idle");
    return showNotice(messages.deviceError(error, "microphone"), start);
  }
  meter.start();
  if (connection.ready) configure();
  else connection.open();
  setState(connection.ready ? "listening" : "connecting");
  keepScreenOn();
  await video.setActive(true);
  updateFrameRate();
  $("flip").hidden = (await settings.listDevices()) < 2;
}

/** Only while the page is visible. A phone that saves power may refuse. */
function keepScreenOn() {
  if (microphone.live && !document.hidden) navigator.wakeLock?.request("screen").catch(() => {});
}

function openMicrophone() {
  return microphone.start({ deviceId: settings.get("microphone"), echoCancellation: settings.get("echo") });
}

function end() {
  microphone.stop();
  video.setActive(false);
  conversation.stopResponse();
  conversation.onConnectionLost();
  connection.close();
  meter.stop();
  Object.assign(page, { pressed: false, locked: false, queue: [] });
  mute(false);
  hideNotice();
  setState("idle");
}

function mute(muted) {
  microphone.muted = muted;
  $("mute").setAttribute("aria-pressed", muted);
  $("mute").querySelector("use").setAttribute("href", muted ? "#i-mute" : "#i-mic");
  if (["listening", "muted"].includes(page.state)) setState("listening");
}

/** Push to talk begins: held down, or locked by a tap. */
function press(locked = false) {
  if (page.pressed) return;
  conversation.stopResponse();
  Object.assign(page, { pressed: true, locked, pressedAt: performance.now() });
  conversation.startTurn();
}

function release(force = false) {
  if (!page.pressed) return;
  if (page.locked && !force) page.locked = false;
  else if (!force && performance.now() - page.pressedAt < TAP_MS) {
    page.locked = true;
    return setState("hearing");
  }
  page.pressed = page.locked = false;
  sendOrQueue({ type: "commit" });
  conversation.endTurn();
}

function sendText(text) {
  if (!text) return;
  if (window.AudioWorkletNode) player.start();
  conversation.typeTurn(text);
  sendOrQueue({ messages: [{ role: "user", content: [{ type: "text", text }] }] });
  connection.open();
}

function reset() {
  conversation.stopResponse();
  conversation.clear();
  video.forceNextFrames();
  connection.send({ type: "reset" });
  $("settings").close();
}

async function openSettings() {
  $("settings").showModal();
  await settings.listDevices();
}

async function onSettingChanged(name) {
  if (name === "token") {
    await loadServerInfo();
    if (microphone.live || page.queue.length) connection.open();
  } else if (["microphone", "echo"].includes(name) && microphone.live) {
    await openMicrophone().catch((error) => showNotice(messages.deviceError(error, "microphone"), start));
    configure();
  } else if (name === "camera" && video.camera.live) await video.open("camera");
  if (SESSION_SETTINGS.includes(name)) configure();
  if (name === "mode") setState(microphone.live ? "listening" : "idle");
  updateFrameRate();
}

function configure() {
  clock.restart(false);
  connection.send(settings.message("configure", microphone.sampleRate));
}

// --- audio and images to the server -----------------------------------------------------------------

function onMicrophoneFrame(pcm, level) {
  if (microphone.muted) {
    new Int16Array(pcm).fill(0); // With silence the server finds the end of what was said before.
    level = 0;
  }
  meter.microphone(level);
  connection.checkAlive();
  if (settings.pushToTalk) {
    if (page.pressed) sendOrQueue(pcm);
    return meter.probability(page.pressed ? 1 : 0);
  }
  sendOrQueue(pcm, performance.now());
  if (!player.playing) gate.reset();
  else if (gate.detects(level)) onPossibleBargeIn();
}

/** Send in order, now or when the connection is open. `recordedAt` is for audio of the open microphone. */
function sendOrQueue(message, recordedAt) {
  if (!page.queue.length && connection.send(message)) {
    if (recordedAt) clock.sent(recordedAt);
    return;
  }
  page.queue.push([message, recordedAt]);
  if (page.queue.length > MAX_QUEUED) page.queue.splice(page.queue.findIndex(([queued]) => queued instanceof ArrayBuffer), 1);
}

/** The user seems to talk over the response: pause it at once, until the server reports speech or has had time to. */
function onPossibleBargeIn() {
  player.pause();
  clearTimeout(page.confirmTimer);
  page.confirmTimer = setTimeout(() => {
    gate.onFalseAlarm();
    player.resume();
  }, BARGE_IN_CONFIRM_MS);
}

function onTurnStarted(turn) {
  clearTimeout(page.confirmTimer);
  video.onTurnStarted(turn, settings.pushToTalk);
}

/** Images are sent more often while the user speaks. */
function updateFrameRate() {
  const speaking = settings.pushToTalk ? page.pressed : page.state === "hearing";
  const sending = connection.ready && (speaking || !settings.pushToTalk);
  video.setFrameRate(sending ? settings.number(speaking ? "busyRate" : "idleRate") : 0);
}

// --- the connection ---------------------------------------------------------------------------------

function onConnected() {
  clock.restart(false);
  video.forceNextFrames();
  if (page.connectionNotice) hideNotice();
  // The server's first records say whether the session is new. They come before the queue is sent.
  setTimeout(() => {
    for (const [message, recordedAt] of page.queue.splice(0)) sendOrQueue(message, recordedAt);
  }, 0);
  if (page.pressed) setState("hearing");
  else setState(page.queue.some(([message]) => !(message instanceof ArrayBuffer)) ? "thinking" : "listening");
}

function onConnectionLost(reason) {
  conversation.onConnectionLost();
  if (reason.kind !== "lost") page.queue = page.queue.filter(([message]) => !(message instanceof ArrayBuffer));
  setState(reason.kind);
  showNotice(messages.connectionError(reason));
}

// --- the views --------------------------------------------------------------------------------------

/** "resting" means: no turn and no response is in progress. It and "listening" become the state that fits the controls. */
function setState(state) {
  if (state === "resting" && !["thinking", "speaking", "hearing"].includes(page.state)) return;
  if (["resting", "listening"].includes(state)) state = restingState();
  page.state = state;
  showState(state, { live: microphone.live, pushToTalk: settings.pushToTalk, pressed: page.pressed, locked: page.locked });
  updateFrameRate();
}

function restingState() {
  if (!microphone.live) return connection.ready ? "waiting" : "idle";
  if (!connection.ready) return "connecting";
  if (settings.pushToTalk) return "waiting";
  return microphone.muted ? "muted" : "listening";
}

function showNotice(message, retry) {
  page.connectionNotice = ["lost", "full", "token"].includes(page.state);
  showNoticeView(message, () => {
    if (message.action === "token") settings.askToken();
    else if (message.action === "settings") openSettings();
    else retry?.();
  });
}

function onMicrophoneLost() {
  showNotice(messages.deviceLost("microphone"), start);
  microphone.stop();
  setState("listening");
}

async function loadServerInfo() {
  try {
    const { status, body } = await fetchServerInfo(settings.token);
    if (status === 401) {
      $("token-row").hidden = false;
      if (page.state === "idle") setState("token");
      return showNotice(messages.connectionError({ kind: "token" }));
    }
    if (page.state === "token") {
      hideNotice();
      setState("listening");
    }
    const recording = body.recording ? " The server records it only if you allow that in the settings." : "";
    $("model").textContent = body.model ?? "";
    $("privacy").textContent = `This page sends what you say and show to ${location.host} only.${recording}`;
    settings.setServerInfo(body);
  } catch {
    showNotice(messages.connectionError({ kind: "lost" }));
  }
}

navigator.mediaDevices?.addEventListener?.("devicechange", () => settings.listDevices());
setState("idle");
if (!isSecureContext) showNotice(messages.insecurePage());
loadServerInfo();
