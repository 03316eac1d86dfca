// What the page shows of its state: the word for it, the buttons, and the notice when something went wrong.

import { ACTIONS, STATUS } from "./words.js";

const $ = (id) => document.getElementById(id);

/** @param {{live: boolean, push: boolean, pressed: boolean, locked: boolean}} how */
export function show(state, { live, push, pressed, locked }) {
  document.body.dataset.state = state;
  if ($("status").textContent !== STATUS[state]) $("status").textContent = STATUS[state];
  const pushing = live && push;
  $("start").hidden = pushing;
  $("start").disabled = state === "connecting" && !live;
  $("start").classList.toggle("live", live);
  $("start-label").textContent = live ? "End" : "Start talking";
  $("start").querySelector("use").setAttribute("href", live ? "#i-end" : "#i-mic");
  $("hold").hidden = $("end").hidden = !pushing;
  $("hold").classList.toggle("live", pressed);
  $("hold-label").textContent = pressed ? (locked ? "Tap to send" : "Release to send") : "Hold to talk";
  $("mute").disabled = !live || push;
}

/** Say what went wrong, and offer what helps. */
export function notice(trouble, act) {
  $("notice").hidden = false;
  $("notice-title").textContent = trouble.title;
  $("notice-text").textContent = trouble.text;
  $("notice-code").replaceChildren(...(trouble.code ?? "").split(" ").flatMap((word) => [unbroken(word), " "]));
  $("notice-code").hidden = !trouble.code;
  $("notice-action").hidden = !trouble.action;
  $("notice-action").textContent = ACTIONS[trouble.action] ?? "";
  $("notice-action").onclick = () => {
    noNotice();
    act();
  };
}

/** A word of a command: its hyphens are no place to break. */
function unbroken(word) {
  const span = document.createElement("span");
  span.textContent = word;
  return span;
}

export function noNotice() {
  $("notice").hidden = true;
}
