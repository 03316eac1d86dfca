// The texts that users see: the status words, and for each error its title, the cause and what to do.
// A message is {title, text, code?, action?}; `action` is a key of ACTIONS.

/** An error of getUserMedia or getDisplayMedia. `kind` is "microphone", "camera" or "screen". Null: show nothing. */
export function deviceError(error, kind) {
  if (kind === "screen") return screenError(error);
  const Kind = kind === "camera" ? "Camera" : "Microphone";
  switch (error?.name) {
    case "NotAllowedError":
    case "SecurityError":
      return {
        title: `${Kind} blocked.`,
        text: `The browser does not let this page use the ${kind}. Allow it next to the address bar, then try again.`,
        action: "retry",
      };
    case "NotFoundError":
      return { title: `No ${kind} found.`, text: `Connect a ${kind}, then try again.`, action: "retry" };
    case "OverconstrainedError":
      return { title: `The chosen ${kind} is not connected.`, text: "Choose another one in the settings.", action: "settings" };
    case "NotReadableError":
    case "AbortError":
      return { title: `The ${kind} is busy.`, text: "Another program may be using it. Close that program, then try again.", action: "retry" };
    default:
      return { title: `The ${kind} does not work.`, text: error?.message ?? "", action: "retry" };
  }
}

function screenError(error) {
  if (error?.name === "NotAllowedError") return null; // The user closed the browser's dialog.
  return { title: "The screen cannot be shared.", text: error?.message ?? "" };
}

/** A device stopped while it was in use. */
export function deviceLost(kind) {
  return { title: `The ${kind} was disconnected.`, text: "It was unplugged, or the browser withdrew the permission.", action: "retry" };
}

export function insecurePage() {
  const port = location.port || "80";
  return {
    title: "Not a secure address.",
    text: "Browsers allow the microphone and the camera on https pages only. You can type. To talk, start the server with:",
    code: `uv run model_server.py --https --port ${port}`,
  };
}

export const UNSUPPORTED_BROWSER = {
  title: "This browser is too old for talking.",
  text: "It does not support audio worklets. You can still type.",
};

/** The connection is lost or was refused. `reason` is what Connection passes to `lost`. */
export function connectionError(reason) {
  switch (reason.kind) {
    case "full":
      if (!/taken|in use/.test(reason.text)) return { title: "Not ready yet.", text: `${sentence(reason.text)} Trying again.` };
      return { title: "The server is full.", text: `${sentence(reason.text)} You will be connected when a session ends.` };
    case "token":
      return { title: "This server requires a token.", text: "The token is missing or wrong.", action: "token" };
    default:
      return { title: "Connection lost.", text: "Reconnecting. The conversation will continue." };
  }
}

/** The server could not generate a response. */
export function responseError(error) {
  return { title: "The response failed.", text: sentence(typeof error === "string" ? error : error.message) };
}

/** The server refused a message of this page. */
export function requestRefused(text) {
  return { title: "The server refused a request.", text: sentence(text) };
}

function sentence(text) {
  const trimmed = (text ?? "").trim();
  return !trimmed || /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
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
