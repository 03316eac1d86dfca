// Shows the page's state: the status word, the buttons, and the notice after an error.

import { ACTIONS, STATUS } from "./messages.js";

const $ = (id) => document.getElementById(id);

/**
 * @param {string} state  a key of STATUS
 * @param {{live: boolean, pushToTalk: boolean, pressed: boolean, locked: boolean}} controls
 *   `live`: the microphone is open; `pressed`: "hold to talk" is active; `locked`: it stays active until the next tap
 */
export function showState(state, { live, pushToTalk, pressed, locked }) {
  document.body.dataset.state = state;
  if ($("status").textContent !== STATUS[state]) $("status").textContent = STATUS[state];
  const holdToTalk = live && pushToTalk;
  $("start").hidden = holdToTalk;
  $("start").disabled = state === "connecting" && !live;
  $("start").classList.toggle("live", live);
  $("start-label").textContent = live ? "End" : "Start talking";
  $("start").querySelector("use").setAttribute("href", live ? "#i-end" : "#i-mic");
  $("hold").hidden = $("end").hidden = !holdToTalk;
  $("hold").classList.toggle("live", pressed);
  $("hold-label").textContent = pressed ? (locked ? "Tap to send" : "Release to send") : "Hold to talk";
  $("mute").disabled = !live || pushToTalk;
}

/**
 * Show an error. Its button, if it has one, hides the notice and calls `onAction`.
 *
 * @param {{title: string, text: string, code?: string, action?: string}} message
 */
export function showNotice(message, onAction) {
  $("notice").hidden = false;
  $("notice-title").textContent = message.title;
  $("notice-text").textContent = message.text;
  $("notice-code").replaceChildren(...(message.code ?? "").split(" ").flatMap((word) => [noBreak(word), " "]));
  $("notice-code").hidden = !message.code;
  $("notice-action").hidden = !message.action;
  $("notice-action").textContent = ACTIONS[message.action] ?? "";
  $("notice-action").onclick = () => {
    hideNotice();
    onAction();
  };
}

export function hideNotice() {
  $("notice").hidden = true;
}

/** A word of a command. Browsers may otherwise break the line at its hyphens. */
function noBreak(word) {
  const span = document.createElement("span");
  span.textContent = word;
  return span;
}
