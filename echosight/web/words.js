// The words for everything that can go wrong, and what to do about it.

const MICROPHONE = { noun: "microphone", Noun: "Microphone" };
const CAMERA = { noun: "camera", Noun: "Camera" };

/** What a device's error means. `kind` is "microphone", "camera" or "screen". */
export function deviceTrouble(error, kind) {
  if (kind === "screen") return screenTrouble(error);
  const { noun, Noun } = kind === "camera" ? CAMERA : MICROPHONE;
  switch (error?.name) {
    case "NotAllowedError":
    case "SecurityError":
      return {
        title: `${Noun} refused.`,
        text: `The browser does not let this page use the ${noun}. Allow it beside the address bar, then try again.`,
        action: "retry",
      };
    case "NotFoundError":
      return { title: `No ${noun} found.`, text: `Connect one, then try again.`, action: "retry" };
    case "OverconstrainedError":
      return { title: `That ${noun} is gone.`, text: "Choose another one in the settings.", action: "settings" };
    case "NotReadableError":
    case "AbortError":
      return { title: `The ${noun} is busy.`, text: "Another program may be using it. Close that, then try again.", action: "retry" };
    default:
      return { title: `The ${noun} does not work.`, text: error?.message ?? "", action: "retry" };
  }
}

function screenTrouble(error) {
  if (error?.name === "NotAllowedError") return null; // The person changed their mind.
  return { title: "The screen cannot be shared.", text: error?.message ?? "" };
}

export function gone(kind) {
  return { title: `The ${kind} went away.`, text: "It was unplugged, or the browser took it back.", action: "retry" };
}

export function insecure() {
  const port = location.port || "80";
  return {
    title: "Not a secure address.",
    text: "Browsers give microphone and camera to https only. You can type; to talk, start the server so:",
    code: `uv run model_server.py --https --port ${port}`,
  };
}

export const UNABLE = {
  title: "This browser is too old for talking.",
  text: "It has no audio worklets. You can still type.",
};

/** Why the connection is not there. */
export function linkTrouble(why) {
  switch (why.kind) {
    case "full":
      if (!/taken/.test(why.text)) return { title: "Not ready yet.", text: `${sentence(why.text)} Trying again.` };
      return { title: "The server is full.", text: `${sentence(why.text)} You come in as soon as there is room.` };
    case "token":
      return { title: "This server asks for a token.", text: "The one given is missing or wrong.", action: "token" };
    default:
      return { title: "Connection lost.", text: "Trying to come back; the conversation goes on from there." };
  }
}

export function answerTrouble(error) {
  return { title: "No answer this time.", text: sentence(typeof error === "string" ? error : error.message) };
}

export function refused(text) {
  return { title: "The server did not take that.", text: sentence(text) };
}

function sentence(text) {
  const said = (text ?? "").trim();
  return !said || /[.!?]$/.test(said) ? said : `${said}.`;
}

export const ACTIONS = { retry: "Try again", settings: "Settings", token: "Enter the token" };

export const STATUS = {
  idle: "Ready",
  connecting: "Connecting",
  listening: "Listening",
  hearing: "Hearing you",
  thinking: "Thinking",
  speaking: "Speaking",
  waiting: "Ready",
  muted: "Muted",
  lost: "Reconnecting",
  full: "Waiting",
  token: "Token needed",
};
