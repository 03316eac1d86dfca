// What the person chose: kept in this browser, shown in the dialog.

const STORE = "echosight";
const TOKEN = "echosight-token";

export class Settings {
  /** @param {HTMLDialogElement} dialog  @param {(name: string) => void} changed */
  constructor(dialog, changed) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.changed = changed;
    this.wished = {};
    this.#load();
    this.#label();
    this.form.addEventListener("input", () => this.#label());
    this.form.addEventListener("change", ({ target }) => {
      this.#save();
      if (target.name) changed(target.name);
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

  get push() {
    return this.get("mode") === "push";
  }

  get token() {
    return this.get("token");
  }

  /** What the server offers. */
  offer({ voices = [], recording = false }) {
    this.#options("voice", voices.map((voice) => [voice, voice]));
    document.getElementById("record-row").hidden = !recording;
  }

  /** The devices there are; they have names once the person let the page use one. */
  async devices() {
    const all = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    const named = (kind) => all.filter((d) => d.kind === kind && d.deviceId).map((d) => [d.deviceId, d.label || "Unnamed"]);
    this.#options("microphone", named("audioinput"));
    this.#options("camera", named("videoinput"));
    return named("videoinput").length;
  }

  /** What the socket is told, as a `subscribe` or `configure` message. */
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
      turn_detection: this.push ? null : { threshold: this.get("threshold"), silence_duration_ms: this.get("silence") },
      record: this.get("record"),
    };
  }

  askToken() {
    document.getElementById("token-row").hidden = false;
    this.dialog.showModal();
    this.form.elements.token.focus();
  }

  #options(name, options) {
    const select = this.form.elements[name];
    const wanted = select.value || this.wished[name] || "";
    select.replaceChildren(select.options[0], ...options.map(([value, label]) => new Option(label, value)));
    select.value = wanted;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  }

  #label() {
    const { threshold, silence } = this.form.elements;
    document.getElementById("threshold-out").value = `at ${Math.round(threshold.value * 100)} %`;
    document.getElementById("silence-out").value = `${silence.value} ms`;
  }

  #load() {
    const { elements } = this.form;
    try {
      this.wished = JSON.parse(localStorage.getItem(STORE)) ?? {};
      elements.token.value = sessionStorage.getItem(TOKEN) ?? "";
    } catch {
      return; // Storage is switched off.
    }
    for (const [name, value] of Object.entries(this.wished)) {
      const field = elements[name];
      if (!field || name === "token") continue;
      if (field.type === "checkbox") field.checked = value;
      else field.value = value;
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.selectedIndex = 0;
    }
  }

  #save() {
    const names = [...new Set([...this.form.elements].map((field) => field.name))].filter((n) => n && n !== "token");
    for (const name of names) this.wished[name] = this.get(name);
    try {
      localStorage.setItem(STORE, JSON.stringify(this.wished));
      sessionStorage.setItem(TOKEN, this.token);
    } catch {
      // They last as long as the page, then.
    }
  }
}

/** A choice that the page makes beside the dialog. */
export function kept(name) {
  try {
    return localStorage.getItem(`${STORE}-${name}`);
  } catch {
    return null;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(`${STORE}-${name}`, value);
  } catch {
    // It lasts as long as the page.
  }
}
