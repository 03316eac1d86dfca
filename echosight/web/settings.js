// The user's settings: shown in the dialog, stored in the browser. The token is stored until the tab is closed.

const STORAGE_KEY = "echosight";
const TOKEN_KEY = "echosight-token";

export class Settings {
  /** @param {HTMLDialogElement} dialog  @param {(name: string) => void} onChange */
  constructor(dialog, onChange) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.stored = {};
    this.#load();
    this.#showRanges();
    this.form.addEventListener("input", () => this.#showRanges());
    this.form.addEventListener("change", ({ target }) => {
      this.#save();
      if (target.name) onChange(target.name);
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }

  get(name) {
    const field = this.form.elements[name];
    if (field.type === "checkbox") return field.checked;
    return field.type === "range" ? Number(field.value) : field.value.trim?.() ?? field.value;
  }

  number(name) {
    return Number(this.get(name));
  }

  get pushToTalk() {
    return this.get("mode") === "push";
  }

  /** The probability that counts as speech: the higher the sensitivity, the lower. */
  get #threshold() {
    return Number((1 - this.get("sensitivity")).toFixed(2));
  }

  get token() {
    return this.get("token");
  }

  /** Show the choices that the server offers. */
  setServerInfo({ voices = [], recording = false }) {
    this.#setOptions("voice", voices.map((voice) => [voice, voice]));
    document.getElementById("record-row").hidden = !recording;
  }

  /** Fill the lists of devices; returns the number of cameras. Browsers hide the names until a device was allowed. */
  async listDevices() {
    const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    const ofKind = (kind) => devices.filter((d) => d.kind === kind && d.deviceId).map((d) => [d.deviceId, d.label || "Unnamed"]);
    this.#setOptions("microphone", ofKind("audioinput"));
    this.#setOptions("camera", ofKind("videoinput"));
    return ofKind("videoinput").length;
  }

  /** The message `subscribe` or `configure` with the settings of the session. */
  message(type, sampleRate) {
    return {
      type,
      sample_rate: sampleRate,
      audio: "binary",
      events: true,
      levels: true,
      instructions: this.get("instructions") || null,
      voice: this.get("voice") || null,
      language: this.get("language") || null,
      turn_detection: this.pushToTalk ? null : { threshold: this.#threshold, silence_duration_ms: this.get("silence") },
      record: this.get("record"),
    };
  }

  askToken() {
    document.getElementById("token-row").hidden = false;
    this.dialog.showModal();
    this.form.elements.token.focus();
  }

  /** Replace the options of a select element, and keep its choice where it still exists. */
  #setOptions(name, options) {
    const select = this.form.elements[name];
    const value = select.value || this.stored[name] || "";
    select.replaceChildren(select.options[0], ...options.map(([id, label]) => new Option(label, id)));
    select.value = value;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  }

  #showRanges() {
    const { sensitivity, silence } = this.form.elements;
    document.getElementById("sensitivity-out").value = `${Math.round(sensitivity.value * 100)} %`;
    document.getElementById("silence-out").value = `${silence.value} ms`;
  }

  #load() {
    const { elements } = this.form;
    try {
      this.stored = JSON.parse(localStorage.getItem(STORAGE_KEY)) ?? {};
      elements.token.value = sessionStorage.getItem(TOKEN_KEY) ?? "";
    } catch {
      return; // Storage is disabled.
    }
    for (const [name, value] of Object.entries(this.stored)) {
      const field = elements[name];
      if (!field || name === "token") continue;
      if (field.type === "checkbox") field.checked = value;
      else field.value = value;
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.selectedIndex = 0;
    }
  }

  #save() {
    const names = [...new Set([...this.form.elements].map((field) => field.name))].filter((n) => n && n !== "token");
    for (const name of names) this.stored[name] = this.get(name);
    try {
      localStorage.setItem(STORAGE_KEY, JSON.stringify(this.stored));
      sessionStorage.setItem(TOKEN_KEY, this.token);
    } catch {
      // Storage is disabled: the settings last as long as the page.
    }
  }
}

/** A stored choice outside of the dialog, or null. */
export function load(name) {
  try {
    return localStorage.getItem(`${STORAGE_KEY}-${name}`);
  } catch {
    return null;
  }
}

export function save(name, value) {
  try {
    localStorage.setItem(`${STORAGE_KEY}-${name}`, value);
  } catch {
    // Storage is disabled: the choice lasts as long as the page.
  }
}
